"""Pre-training of the backbone: predict the actions of a window, given a prompt of the same task."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptdiffuser.data.plans import Planner
from promptdiffuser.data.windows import PromptPool, Segments, WindowSource
from promptdiffuser.models.backbone import Prompt, PromptDT
from promptdiffuser.rng import seeded_at
from promptdiffuser.training.engine import CombinedGradient, FlatParameters, LocalGradients
from promptdiffuser.training.gradients import accumulate
from promptdiffuser.training.precision import Precision, check_precision


@dataclass(frozen=True)
class BackboneLossConfig:
    """What one pre-training update sees."""

    batch_size: int = 480
    """Windows in a global batch, each with a prompt of its own (the public code: 16 for every training task)."""
    window_steps: int = 0
    """Steps of these windows; 0 is the longest that the backbone takes. With banded attention that is whole episodes;
    as many steps in shorter windows come from more episodes and prompts, but their first ones see less history."""
    precision: Precision = "auto"
    """auto (the best the hardware has), fp32, bf16, or fp16 with scaled losses."""
    accumulation: int = 1
    """Pieces that a worker cuts its part of a batch into, to need less memory; their gradients are added up."""
    compile: bool = False
    """Compile the network by torch.compile: a minute at the start, for trainings that last much longer."""

    def __post_init__(self) -> None:
        """Refuse an empty batch, impossible windows and an unknown precision."""
        for name in ("batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.window_steps < 0:
            raise ValueError(f"window_steps must not be negative, got {self.window_steps}")
        check_precision("precision", self.precision)


def squared_action_errors(backbone: Callable[[Segments, Prompt], Tensor], history: Segments, prompt: Prompt) -> Tensor:
    """Return (B, K, A) squared errors of the predicted actions, zero at padded steps."""
    predicted_BKA: Tensor = backbone(history, prompt).to(history.actions.dtype)
    return (predicted_BKA - history.actions).square() * history.valid[..., None]


class BackboneLearning:
    """The engine's learning task for the backbone.

    The loss is the mean squared action error over the valid steps of the global batch (pdt_main.py); a mean over padded
    steps, which some re-implementations take, would weigh windows at an episode's end less.
    """

    def __init__(
        self,
        model: PromptDT,
        windows: WindowSource,
        pool: PromptPool,
        config: BackboneLossConfig,
        planner: Planner,
    ) -> None:
        """Train `model` on the history windows that `planner` draws, with prompts from `pool`."""
        self.model, self.windows, self.pool, self.config = model, windows, pool, config
        self.planner, self.address = planner, planner.address
        self.memory: dict[str, Tensor] = {}
        self._predict = torch.compile(model) if config.compile else model
        model.train()

    def local_gradients(self, parameters: FlatParameters, step: int) -> LocalGradients:
        """Return this worker's share of the action loss and its gradient."""
        plan = self.planner.at(step)
        count = plan.steps(self.pool.index) * self.windows.action_dim
        rows, history = self.windows.windows(step, plan)
        prompts = self.pool.prompts_at(plan.prompt_episodes[rows])

        def loss_of(part: slice) -> Tensor:
            errors = squared_action_errors(self._predict, history.select(part).trimmed(), prompts.select(part))
            return errors.sum() / count

        device = self.windows.device
        with self._masks_drawn_for(rows, step):
            loss, gradient = accumulate(
                parameters, loss_of, len(rows), self.config.accumulation, self.config.precision, device
            )
        return LocalGradients(gradient[None], {"loss": loss})

    def _masks_drawn_for(self, rows: NDArray[np.intp], step: int) -> AbstractContextManager[None]:
        """Draw the dropout masks of an update at an address of this worker's rows, which no other worker has."""
        if not self.model.config.dropout or not len(rows):
            return nullcontext()
        return seeded_at(self.windows.device, *self.address, "dropout", step, int(rows[0]))

    def combine(self, gradients_GP: Tensor, step: int) -> CombinedGradient:
        """Follow the only gradient."""
        return CombinedGradient(gradients_GP[0])


def freeze(model: PromptDT) -> PromptDT:
    """Return the backbone without dropout and without gradients of its own, as adaptation uses it."""
    model.eval().requires_grad_(requires_grad=False)
    return model
