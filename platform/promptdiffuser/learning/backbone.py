"""Pre-training of the backbone: predict the actions of a window, given a prompt of the same task."""

from dataclasses import dataclass

from torch import Tensor

from promptdiffuser.data.windows import PromptPool, ResidentEpisodes, Segments, draw_windows
from promptdiffuser.learning.engine import FlatParameters, Share
from promptdiffuser.learning.precision import autocast
from promptdiffuser.models.backbone import PromptDT


@dataclass(frozen=True)
class BackboneLossConfig:
    """What one pre-training update sees."""

    batch_size: int = 480
    """Windows in a global batch, each with a prompt of its own (the public code: 16 for every training task)."""
    precision: str = "auto"
    """fp32, bf16, or auto for the best the hardware has."""

    def __post_init__(self) -> None:
        """Refuse an empty batch and an unknown precision."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision must be auto, fp32 or bf16, got {self.precision!r}")


def squared_action_errors(backbone: PromptDT, history: Segments, prompt: Segments) -> Tensor:
    """Return (B, K, A) squared errors of the predicted actions, zero at padded steps."""
    predicted_BKA: Tensor = backbone(history, prompt).float()
    return (predicted_BKA - history.actions).square() * history.valid[..., None]


class BackboneLearning:
    """The engine's learning task for the backbone.

    The loss is the mean squared action error over the valid steps of the global batch (pdt_main.py); a mean over padded
    steps, which some re-implementations take, would weigh windows at an episode's end less.
    """

    def __init__(
        self,
        model: PromptDT,
        episodes: ResidentEpisodes,
        pool: PromptPool,
        config: BackboneLossConfig,
        address: tuple[int | str, ...],
    ) -> None:
        """Train `model` on the windows that `episodes` holds, with prompts from `pool`."""
        self.model, self.episodes, self.pool, self.config, self.address = model, episodes, pool, config, address
        model.train()

    def share(self, parameters: FlatParameters, step: int) -> Share:
        """Return this worker's share of the action loss and its gradient."""
        history_length = self.model.config.history
        plan = draw_windows(self.pool.index, self.config.batch_size, 0, *self.address, step)
        count = plan.steps(self.pool.index, history_length) * self.episodes.actions.shape[-1]
        held = plan.select(self.episodes.held(plan))
        history = self.episodes.segments(held.episodes, held.starts, history_length)
        with autocast(self.config.precision, self.episodes.states.device):
            errors = squared_action_errors(self.model, history, self.pool.prompts_at(held.prompt_episodes))
        loss = errors.sum() / count
        return Share(parameters.gradient(loss)[None], {"loss": loss})

    def join(self, gradients_GP: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the only gradient."""
        return gradients_GP[0], {}


def freeze(model: PromptDT) -> PromptDT:
    """Return the backbone without dropout and without gradients of its own, as adaptation uses it."""
    model.eval().requires_grad_(requires_grad=False)
    return model
