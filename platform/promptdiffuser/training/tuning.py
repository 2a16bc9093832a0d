"""Tuning a few numbers by the few-shot action loss through the frozen backbone: prompts, tokens, some of the weights.

What is tuned are the trainable parameters of a module. Either one set of them serves all prompts, as weights do, or the
prompts themselves are tuned: then all prompts of a task are rows of one batch, each with history windows of its own,
and no prompt's numbers depend on another's.

The number of updates is chosen by the loss on held-out few-shot episodes, as `few_shot.py` does for diffusers: of every
prompt, or of the weights, the state with the lowest loss is kept, that before the first update included.

Axes: B windows of a batch, those of one prompt together, G groups of windows whose numbers are tuned apart.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from promptdiffuser.data.plans import Address, EpisodeIndex, Planner, WindowPlan, held_out_plan
from promptdiffuser.data.windows import ResidentEpisodes, Segments
from promptdiffuser.models.backbone import Prompt, PromptDT
from promptdiffuser.training.backbone_objective import squared_action_errors
from promptdiffuser.training.engine import (
    CombinedGradient,
    Engine,
    FlatParameters,
    LocalGradients,
    OptimisationConfig,
    identity_reduce,
)
from promptdiffuser.training.gradients import accumulate
from promptdiffuser.training.precision import Precision, autocast, check_precision


@dataclass(frozen=True)
class TuningConfig:
    """How something is tuned on a few-shot set."""

    steps: int = 100
    """Updates of AdamW at most; the best state on the held-out episodes is used."""
    learning_rate: float = 1e-3
    """Step size of AdamW, constant."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    batch_steps: int = 40
    """Steps of history in one update, of every prompt where prompts are tuned, in windows; one window at least."""
    window_steps: int = 0
    """Steps of a window; 0 is the longest that the backbone takes, and never more. With banded attention that is whole
    episodes; shorter windows take less time, and their first steps see less history."""
    held_out_episodes: int = 1
    """Last few-shot episodes that the updates do not see and the number of updates is chosen on; 0 takes the last
    state. At least one episode is always seen, so a set of one episode holds out none."""
    check_every: int = 10
    """Updates between looks at the held-out episodes."""
    precision: Precision = "auto"
    """Number format of the backbone's products: auto (the best the hardware has), fp32, bf16, or fp16."""

    def __post_init__(self) -> None:
        """Refuse values that cannot tune."""
        for name in ("steps", "batch_steps", "check_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("held_out_episodes", "window_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must not be negative and must be finite, got {self.weight_decay}")
        check_precision("precision", self.precision)

    def num_seen(self, num_episodes: int) -> int:
        """Return how many of the few-shot episodes, the first ones, the updates see."""
        return max(1, num_episodes - self.held_out_episodes)

    @property
    def optimisation(self) -> OptimisationConfig:
        """What the engine is told. Gradients are not clipped, as their common length would couple the prompts."""
        return OptimisationConfig(
            steps=self.steps,
            learning_rate=self.learning_rate,
            schedule="constant",
            weight_decay=self.weight_decay,
            clip_norm=0.0,
        )


def window_planner(
    backbone: PromptDT, index: EpisodeIndex, batch_steps: int, num_groups: int, address: Address, window_steps: int = 0
) -> Planner:
    """Return what draws windows of about `batch_steps` steps in all, one at least, for each of some groups.

    Within one task the rows of a plan are drawn one after the other, so a group's windows do not depend on how many
    groups there are. A window has `window_steps` steps; with 0, and at most, as many as the backbone takes.
    """
    longest = backbone.config.window_steps or int(index.lengths.max())
    size = min(window_steps or longest, longest)
    steps = backbone.config.window_steps if size == longest else size
    return Planner(index, num_groups * max(1, batch_steps // size), steps, address)


def action_losses(backbone: PromptDT, history: Segments, prompts: Prompt, num_groups: int) -> Tensor:
    """Return the mean squared action error (G,) of each group of windows; those of one stand together."""
    errors_B = squared_action_errors(backbone, history.trimmed(), prompts).sum((1, 2))
    numbers_B = history.valid.sum(1) * history.actions.shape[-1]
    errors_G, numbers_G = (x_B.view(num_groups, -1).sum(1) for x_B in (errors_B, numbers_B))
    return errors_G / numbers_G


class FewShotTuning:
    """The engine's learning task for tuning: the mean squared action error, of each group, on its own windows."""

    def __init__(
        self,
        model: nn.Module,
        backbone: PromptDT,
        prompts_at: Callable[[Tensor], Prompt],
        windows: ResidentEpisodes,
        index: EpisodeIndex,
        config: TuningConfig,
        address: Address,
        num_prompts: int = 0,
    ) -> None:
        """Tune the trainable parameters of a module.

        Args:
            model: Its parameters have a leading axis G where prompts are tuned.
            backbone: What predicts actions; `model` itself where weights are tuned.
            prompts_at: Rows (B,) -> their prompts: of the prompts that are tuned, or else of few-shot episodes.
            windows: The few-shot episodes.
            index: Their index.
            config: How to tune.
            address: Where the randomness lives.
            num_prompts: G, if prompts are tuned; 0 if one set of numbers serves all.
        """
        self.model, self.backbone, self.prompts_at, self.windows = model, backbone, prompts_at, windows
        self.index, self.config, self.address, self.num_prompts = index, config, address, num_prompts
        self.memory: dict[str, Tensor] = {}
        seen = index.select(slice(config.num_seen(len(index))))
        self.planner = window_planner(backbone, seen, config.batch_steps, self.num_groups, address, config.window_steps)

    @property
    def num_groups(self) -> int:
        """G."""
        return max(1, self.num_prompts)

    def local_gradients(self, parameters: FlatParameters, step: int) -> LocalGradients:
        """Return the sum of the groups' losses and its gradient."""
        losses: list[Tensor] = []

        def loss_of(part: slice) -> Tensor:
            losses.append(self.losses(self.planner.at(step)))
            return losses[-1].sum()

        _, gradient = accumulate(parameters, loss_of, 1, 1, self.config.precision, self.windows.device)
        return LocalGradients(gradient[None], {"loss": losses[-1].mean()})

    def combine(self, gradients_GP: Tensor, step: int) -> CombinedGradient:
        """Follow the only gradient."""
        return CombinedGradient(gradients_GP[0])

    def losses(self, plan: WindowPlan) -> Tensor:
        """Return the mean squared action error (G,) of each group on its rows of a plan, which stand together."""
        _, history = self.windows.windows(0, plan)
        return action_losses(self.backbone, history, self._prompts(plan), self.num_groups)

    @torch.no_grad()
    def held_out_losses(self) -> Tensor:
        """Return the loss (G,) of each group on all windows of the episodes that the updates do not see."""
        plan = held_out_plan(self.planner, self.index)
        rows_B = np.tile(np.arange(len(plan.episodes)), self.num_groups)
        with autocast(self.config.precision, self.windows.device):
            return self.losses(plan.select(rows_B))

    def _prompts(self, plan: WindowPlan) -> Prompt:
        rows_B: NDArray[np.int64] = plan.prompt_episodes
        if self.num_prompts:
            rows_B = np.repeat(np.arange(self.num_prompts), len(rows_B) // self.num_prompts)
        return self.prompts_at(torch.from_numpy(rows_B).to(self.windows.device))


def tune(task: FewShotTuning) -> None:
    """Make the updates, and leave in the model the best state of each group; the first of equals."""
    config = task.config
    engine = Engine(task, config.optimisation, identity_reduce)
    tensors = list(engine.parameters.named_views.values())
    if len(task.planner.index) == len(task.index):
        for _ in range(config.steps):
            engine.advance()
        return
    # A loss that is not a number loses against every other.
    best, best_G = [tensor.clone() for tensor in tensors], task.held_out_losses().nan_to_num(nan=torch.inf)
    for step in range(1, config.steps + 1):
        engine.advance()
        if step % config.check_every == 0 or step == config.steps:
            losses_G = task.held_out_losses()
            is_better_G = losses_G < best_G
            best_G = torch.where(is_better_G, losses_G, best_G)
            for kept, tensor in zip(best, tensors, strict=True):
                # One group is all rows of whatever shape, several are the first axis.
                kept.copy_(torch.where(is_better_G.view(-1, *[1] * (tensor.ndim - 1)), tensor, kept))
    for kept, tensor in zip(best, tensors, strict=True):
        tensor.copy_(kept)
