"""Prompts chosen among all segments of the few-shot episodes by a bandit that plays episodes (Rietz et al. 2025).

Every window of the few-shot episodes is an arm, of as many steps as a slot has. All prompts of the policy are the one
prompt that the bandit ends with.

Axes: N arms, J slots, H steps of a segment, F features, Q prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptdiffuser.data.windows import Segments
from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Cost, Method, register
from promptdiffuser.methods.online import TargetSimulator
from promptdiffuser.methods.prompt_numbers import numbers_of
from promptdiffuser.methods.shared.bandits import BanditConfig, Strategy, num_parameters, play_bandit
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.rollout.policies import AdaptedPolicy


@dataclass(frozen=True)
class PromptBanditConfig(BanditConfig):
    """Settings of the prompt bandits."""

    features: Literal["raw", "backbone"] = "raw"
    """What the reward model sees of a segment. raw: its numbers. backbone: what the frozen backbone makes of it, the
    hidden state of the last action's token."""

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        super().__post_init__()
        if self.features not in ("raw", "backbone"):
            raise ValueError(f"features must be raw or backbone, got {self.features!r}")


def adapt(strategy: Strategy, inputs: AdaptationInputs) -> Adaptation:
    """Let the bandit play and take the prompt it ends with."""
    config: PromptBanditConfig = inputs.settings
    name = f"prompt-bandit-{strategy}"
    segments = _segments(inputs, inputs.backbone.config.prompt_length // config.slots)
    features_NF = FEATURES[config.features](inputs.backbone, segments)
    simulator = TargetSimulator(inputs, name)

    def play(arms_QJ: NDArray[np.int64], first_episode: int) -> NDArray[np.float64]:
        return simulator.play(_joined(segments, arms_QJ), range(first_episode, first_episode + len(arms_QJ)))

    best_J = play_bandit(play, features_NF.cpu(), strategy, config, (inputs.seed, name, inputs.task))
    prompts = _joined(segments, np.tile(best_J, (inputs.num_prompts, 1)))
    cost = Cost(
        tunable_parameters=num_parameters(config.slots, features_NF.shape[1]),
        gradient_steps=-(-config.episodes // config.at_a_time),
        environment_episodes=simulator.episodes_played,
    )
    return Adaptation(AdaptedPolicy(inputs.backbone, prompts), cost)


def _segments(inputs: AdaptationInputs, num_steps: int) -> Segments:
    """Return every window (N, H) of the few-shot episodes."""
    counts = inputs.few_shot.pool.index.lengths - num_steps + 1
    episodes_N = np.repeat(np.arange(len(counts)), counts)
    starts_N = np.concatenate([np.arange(count) for count in counts])
    return inputs.few_shot.windows.segments(episodes_N, starts_N, num_steps)


def _joined(segments: Segments, arms_QJ: NDArray[np.int64]) -> Segments:
    """Return prompts (Q, J H) of the segments in their slots."""
    arms = torch.from_numpy(arms_QJ).to(segments.states.device)
    return Segments(**{field.name: getattr(segments, field.name)[arms].flatten(1, 2) for field in fields(Segments)})


@torch.no_grad()
def _hidden_states(backbone: PromptDT, segments: Segments) -> Tensor:
    return backbone.prompt_hidden(segments)[:, -1]


FEATURES: dict[str, Callable[[PromptDT, Segments], Tensor]] = {
    "raw": lambda backbone, segments: numbers_of(segments),
    "backbone": _hidden_states,
}
STRATEGIES: dict[Strategy, str] = {
    "thompson": "Thompson sampling",
    "ucb": "upper confidence bounds",
    "greedy": "epsilon-greedy choice",
}
for strategy, words in STRATEGIES.items():
    register(
        Method(
            f"prompt-bandit-{strategy}",
            partial(adapt, strategy),
            f"the best few-shot segment by {words} over episodes",
            label=f"Prompt bandit, {words}",
            settings=PromptBanditConfig,
            section="prompt_bandit",
            uses_simulator=True,
        ),
        place=150,
    )
