"""Prompt-Tuning DT (Hu et al., arXiv 2305.09648): the numbers of a trajectory prompt searched by ZO-RankSGD.

`prompt-tuning-dt` scores perturbed prompts by the action loss on few-shot episodes (the paper's equation 6),
`prompt-tuning-dt-online` by the return of episodes played with them (equation 7). Which numbers are perturbed is said
in `prompt_numbers.py`. Prompts of a task are searched side by side.

Axes: P prompts, M perturbations of each, X numbers of a prompt, E episodes of each perturbation.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from promptdiffuser.data.windows import Segments
from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Cost, Method, register
from promptdiffuser.methods.online import TargetSimulator
from promptdiffuser.methods.prompt_numbers import numbers_of, with_numbers
from promptdiffuser.methods.shared.rank_search import RankSearchConfig, rank_search
from promptdiffuser.rollout.policies import AdaptedPolicy
from promptdiffuser.training.precision import Precision, autocast, check_precision
from promptdiffuser.training.tuning import action_losses, window_planner


@dataclass(frozen=True)
class PromptTuningDTConfig(RankSearchConfig):
    """Settings of prompt-tuning-dt."""

    batch_steps: int = 40
    """Steps of history that a perturbation is scored on, in windows; one window at least. All perturbations of a prompt
    in one update see the same (two batches of 256 windows of 5 steps in the author's code)."""
    window_steps: int = 0
    """Steps of a window; 0 is the longest that the backbone takes, and never more."""
    precision: Precision = "auto"
    """Number format of the backbone's products."""

    def __post_init__(self) -> None:
        """Refuse scores of nothing."""
        super().__post_init__()
        if self.batch_steps < 1:
            raise ValueError(f"batch_steps must be at least 1, got {self.batch_steps}")
        if self.window_steps < 0:
            raise ValueError(f"window_steps must not be negative, got {self.window_steps}")
        check_precision("precision", self.precision)


@dataclass(frozen=True)
class PromptTuningDTOnlineConfig(RankSearchConfig):
    """Settings of prompt-tuning-dt-online."""

    steps: int = 16
    """Updates; each plays searches x perturbations x episodes."""
    searches: int = 1
    """Prompts that are searched, each from a few-shot prompt of its own; they serve in turn. 0 searches all prompts.
    One search of 16 updates plays 240 episodes, about as many as a bandit."""
    episodes: int = 1
    """Episodes that a perturbation is scored on; all perturbations of an update meet the same start states (two in the
    author's code)."""

    def __post_init__(self) -> None:
        """Refuse scores of nothing."""
        super().__post_init__()
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")
        if self.searches < 0:
            raise ValueError(f"searches must be 0 (all) or more, got {self.searches}")


def adapt(inputs: AdaptationInputs) -> Adaptation:
    """Search by the few-shot action loss."""
    config: PromptTuningDTConfig = inputs.settings
    windows, index = inputs.few_shot.windows, inputs.few_shot.pool.index
    backbone, start = inputs.backbone, inputs.few_shot_prompts()
    address = (inputs.seed, OFFLINE.name, inputs.task)
    planner = window_planner(backbone, index, config.batch_steps, inputs.num_prompts, address, config.window_steps)
    num_candidates = inputs.num_prompts * config.perturbations
    per_candidate = planner.batch_size // inputs.num_prompts

    @torch.no_grad()
    def losses_at(candidates_PMX: Tensor, step: int) -> Tensor:
        rows = np.arange(planner.batch_size).reshape(inputs.num_prompts, 1, per_candidate)
        plan = planner.at(step).select(np.repeat(rows, config.perturbations, axis=1).ravel())
        _, history = windows.windows(step, plan)
        of_window = torch.arange(num_candidates, device=inputs.device).repeat_interleave(per_candidate)
        candidates = with_numbers(
            start.select(of_window // config.perturbations), candidates_PMX.flatten(0, 1)[of_window]
        )
        with autocast(config.precision, inputs.device):
            losses = action_losses(backbone, history, candidates, num_candidates)
        return losses.view(inputs.num_prompts, -1)

    return _searched(inputs, start, config, OFFLINE, losses_at)


def adapt_online(inputs: AdaptationInputs) -> Adaptation:
    """Search by returns of episodes that are played."""
    config: PromptTuningDTOnlineConfig = inputs.settings
    start = inputs.few_shot_prompts().select(slice(config.searches or None))
    simulator = TargetSimulator(inputs, ONLINE.name)

    def losses_at(candidates_PMX: Tensor, step: int) -> Tensor:
        shape = (*candidates_PMX.shape[:2], config.episodes)
        of_episode = torch.arange(int(np.prod(shape)), device=inputs.device) // config.episodes
        prompts = with_numbers(
            start.select(of_episode // config.perturbations), candidates_PMX.flatten(0, 1)[of_episode]
        )
        starts = np.broadcast_to(step * config.episodes + np.arange(config.episodes), shape)
        returns = torch.from_numpy(simulator.play(prompts, starts.ravel().tolist())).view(shape)
        return -returns.mean(dim=2).to(inputs.device)

    adaptation = _searched(inputs, start, config, ONLINE, losses_at)
    return replace(adaptation, cost=replace(adaptation.cost, environment_episodes=simulator.episodes_played))


def _searched(
    inputs: AdaptationInputs,
    start: Segments,
    config: RankSearchConfig,
    method: Method,
    losses_at: Callable[[Tensor, int], Tensor],
) -> Adaptation:
    numbers_PX = rank_search(numbers_of(start), losses_at, config, (inputs.seed, method.name, inputs.task))
    in_turn = torch.arange(inputs.num_prompts, device=inputs.device) % len(start)
    prompts = with_numbers(start, numbers_PX).select(in_turn)
    return Adaptation(AdaptedPolicy(inputs.backbone, prompts), Cost(numbers_PX.shape[1], config.steps))


OFFLINE = register(
    Method(
        "prompt-tuning-dt",
        adapt,
        "the prompt's numbers searched by ranks of few-shot action losses",
        label="Prompt-Tuning DT",
        settings=PromptTuningDTConfig,
    ),
    place=140,
)
ONLINE = register(
    Method(
        "prompt-tuning-dt-online",
        adapt_online,
        "the prompt's numbers searched by ranks of returns",
        label="Prompt-Tuning DT, online",
        settings=PromptTuningDTOnlineConfig,
        uses_simulator=True,
    ),
    place=140,
)
