"""Prompt Diffuser, best of several: the candidate that makes the frozen backbone predict few-shot actions best.

A generated prompt depends on its noise, and what it is worth can be told without a simulator. `prompt-diffuser-best-of`
chooses after the few-shot updates, where the candidates are best; `-multi-task` without them, so that nothing is
trained on the target task and the choice is all that the task decides.

Axes: P prompts, C candidates of each, N = P C, K levels that generation visits, X features of a flattened prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from promptdiffuser.data.windows import Segments
from promptdiffuser.diffusion.diffuser import Diffuser
from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Method, register
from promptdiffuser.methods.prompt_diffuser import adapted_diffuser, cost_of, noise_of
from promptdiffuser.rollout.policies import AdaptedPolicy
from promptdiffuser.training.tuning import action_losses, window_planner

WINDOWS_TOGETHER = 1024
"""History windows that the backbone sees at a time: enough to be fast, few enough for any memory."""


@dataclass(frozen=True)
class BestOfConfig:
    """How candidates are chosen."""

    candidates: int = 16
    """Prompts that are generated for each one that is kept; from 1, which is no choice."""
    batch_steps: int = 400
    """Steps of history that a candidate is scored on, in windows of few-shot episodes; the same for all candidates."""

    def __post_init__(self) -> None:
        """Refuse an empty choice."""
        for name in ("candidates", "batch_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"adaptation.best_of.{name} must be at least 1, got {getattr(self, name)}")


def adapt(inputs: AdaptationInputs) -> Adaptation:
    """Make the few-shot updates, if any, generate and choose."""
    diffuser = adapted_diffuser(inputs)
    return Adaptation(AdaptedPolicy(inputs.backbone, best_prompts(diffuser, inputs)), cost_of(diffuser, inputs))


@torch.no_grad()
def best_prompts(diffuser: Diffuser, inputs: AdaptationInputs) -> Segments:
    """Return, for each condition, the candidate with the lowest loss."""
    config: BestOfConfig = inputs.settings
    conditions, transitions_PMF = diffuser.conditions_in_turn(inputs.few_shot.pool, inputs.num_prompts)
    prompt_N = torch.arange(inputs.num_prompts, device=inputs.device).repeat_interleave(config.candidates)
    noise_KPCX = torch.stack([noise_of(diffuser, inputs, each) for each in range(config.candidates)], dim=2)
    candidates = diffuser.generate(conditions.select(prompt_N), transitions_PMF[prompt_N], noise_KPCX.flatten(1, 2))
    losses_PC = few_shot_losses(candidates, inputs).view(inputs.num_prompts, config.candidates)
    best_P = losses_PC.argmin(dim=1) + torch.arange(0, len(prompt_N), config.candidates, device=inputs.device)
    return candidates.select(best_P)


def few_shot_losses(prompts: Segments, inputs: AdaptationInputs) -> Tensor:
    """Return the mean squared action error (N,) of the backbone behind each prompt, on the same few-shot windows."""
    config: BestOfConfig = inputs.settings
    few_shot, address = inputs.few_shot, (inputs.seed, "best-of", inputs.task)
    planner = window_planner(inputs.backbone, few_shot.pool.index, config.batch_steps, 1, address)
    _, history = few_shot.windows.windows(0, planner.at(0))
    num_windows, losses = len(history), []
    for piece_N in torch.arange(len(prompts), device=inputs.device).split(max(1, WINDOWS_TOGETHER // num_windows)):
        windows_B = torch.arange(num_windows, device=inputs.device).repeat(len(piece_N))
        behind = prompts.select(piece_N.repeat_interleave(num_windows))
        losses.append(action_losses(inputs.backbone, history.select(windows_B), behind, len(piece_N)))
    return torch.cat(losses)


register(
    Method(
        "prompt-diffuser-best-of",
        adapt,
        "task context, the best of several by few-shot loss",
        label="Prompt Diffuser + task context, best of several",
        settings=BestOfConfig,
        section="best_of",
        diffuser="context",
        few_shot_updates=True,
    ),
    place=100,
)
register(
    Method(
        "prompt-diffuser-best-of-multi-task",
        adapt,
        "the same without training on the target task",
        label="Prompt Diffuser + task context, best of several, no updates",
        settings=BestOfConfig,
        section="best_of",
        diffuser="context",
    ),
    place=100,
)
