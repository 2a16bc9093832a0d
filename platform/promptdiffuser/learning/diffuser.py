"""Training of the Prompt Diffuser: denoising loss, downstream loss through the frozen backbone, gradient projection.

Two stages share this learning task and differ only in the data they are given: multi-task training on the training
tasks, then a few updates on the few-shot episodes of one target task (paper, Algorithm 1).

Axes: B rows, X features of a flattened prompt, N denoising steps, F features of a transition.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from promptdiffuser.data.windows import PromptPool, ResidentEpisodes, Segments, draw_windows
from promptdiffuser.diffusion.process import Diffusion
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.learning.backbone import squared_action_errors
from promptdiffuser.learning.engine import FlatParameters, Share
from promptdiffuser.learning.precision import autocast
from promptdiffuser.learning.projection import PROJECTIONS, join
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.models.denoiser import Denoiser
from promptdiffuser.seeding import torch_generator


@dataclass(frozen=True)
class GuidanceConfig:
    """How the downstream loss guides the diffuser."""

    weight: float = 5.0
    """Guidance weight lambda of the downstream gradient; 0 trains on the denoising loss alone. The paper has 1."""
    match_norms: bool = True
    """Scale the downstream gradient to the denoising gradient's length before weighting it."""
    projection: str = "complement"
    """complement or sum, see `learning/projection.py`."""
    batch_size: int = 64
    """History windows, each with a generated prompt, in the downstream loss of one update."""
    precision: str = "auto"
    """fp32, bf16 or auto: number format of the products in both losses."""

    def __post_init__(self) -> None:
        """Refuse unknown rules and impossible sizes."""
        if self.projection not in PROJECTIONS:
            raise ValueError(f"guidance.projection {self.projection!r} is unknown; known: {', '.join(PROJECTIONS)}")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"guidance.weight must not be negative and must be finite, got {self.weight}")
        if self.batch_size < 1:
            raise ValueError(f"guidance.batch_size must be at least 1, got {self.batch_size}")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"guidance.precision must be auto, fp32 or bf16, got {self.precision!r}")


class Diffuser:
    """A denoiser with its diffusion process and prompt space: everything that turns noise into prompts."""

    def __init__(self, denoiser: Denoiser, diffusion: Diffusion, space: PromptSpace) -> None:
        """Join the three parts."""
        self.denoiser, self.diffusion, self.space = denoiser, diffusion, space

    def draw_noise(self, num_prompts: int, *address: int | str) -> Tensor:
        """Return the noise (N, B, X) of `num_prompts` reverse chains at an address."""
        shape = (self.diffusion.num_steps, num_prompts, len(self.space.low))
        return torch.randn(shape, generator=torch_generator(*address))

    def generate(self, conditions: Segments, transitions_BMF: Tensor, noise_NBX: Tensor) -> Segments:
        """Generate a prompt for each condition and task context by the full reverse chain; differentiable."""
        condition_BC = self.denoiser.condition(self.space.condition(conditions), transitions_BMF)
        x0_BX = self.diffusion.sample(lambda x, step: self.denoiser(x, step, condition_BC), noise_NBX)
        return self.space.decode(x0_BX, conditions)

    def denoising_loss(self, prompts: Segments, transitions_BMF: Tensor, step_B: Tensor, noise_BX: Tensor) -> Tensor:
        """Return L_DM of each row (B,): mean squared error of the predicted noise over features."""
        condition_BC = self.denoiser.condition(self.space.condition(prompts), transitions_BMF)
        noised_BX = self.diffusion.noised(self.space.encode(prompts), step_B, noise_BX)
        predicted_BX = self.denoiser(noised_BX, step_B, condition_BC).float()
        return F.mse_loss(predicted_BX, noise_BX, reduction="none").mean(dim=1)


class DiffuserLearning:
    """The engine's learning task for a Prompt Diffuser."""

    def __init__(
        self,
        diffuser: Diffuser,
        backbone: PromptDT,
        episodes: ResidentEpisodes,
        pool: PromptPool,
        guidance: GuidanceConfig,
        batch_size: int,
        context_episodes: int,
        guidance_start: int,
        address: tuple[int | str, ...],
    ) -> None:
        """Train the denoiser; `backbone` is frozen, guidance acts from update `guidance_start` on."""
        self.model = diffuser.denoiser
        self.diffuser, self.backbone, self.episodes, self.pool = diffuser, backbone, episodes, pool
        self.guidance, self.batch_size, self.context_episodes = guidance, batch_size, context_episodes
        self.guidance_start, self.address = guidance_start, address

    def share(self, parameters: FlatParameters, step: int) -> Share:
        """Return this worker's share of L_DM and, where guidance acts, of L_DT, with a gradient each."""
        loss_dm = self._denoising_share(step)
        gradients, scalars = [parameters.gradient(loss_dm)], {"loss_dm": loss_dm}
        if self.guidance.weight > 0 and step >= self.guidance_start:
            scalars["loss_dt"] = self._downstream_share(step)
            gradients.append(parameters.gradient(scalars["loss_dt"]))
        return Share(torch.stack(gradients), scalars)

    def join(self, gradients_GP: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Join the gradients by the configured projection."""
        if len(gradients_GP) == 1:
            return gradients_GP[0], {}
        gradient_dm, gradient_dt = gradients_GP
        return join(gradient_dm, gradient_dt, self.guidance.projection, self.guidance.weight, self.guidance.match_norms)

    def _denoising_share(self, step: int) -> Tensor:
        plan = draw_windows(self.pool.index, self.batch_size, self.context_episodes, *self.address, "dm", step)
        generator = torch_generator(*self.address, "dm-noise", step)
        num_features = len(self.diffuser.space.low)
        step_B = torch.randint(self.diffuser.diffusion.num_steps, (self.batch_size,), generator=generator)
        noise_BX = torch.randn(self.batch_size, num_features, generator=generator)
        rows = self.episodes.held(plan)
        held, device = plan.select(rows), self.episodes.states.device
        with autocast(self.guidance.precision, device):
            losses_B = self.diffuser.denoising_loss(
                self.pool.prompts_at(held.prompt_episodes),
                self.pool.contexts_at(held.context_episodes),
                step_B[rows].to(device),
                noise_BX[rows].to(device),
            )
        return losses_B.sum() / self.batch_size

    def _downstream_share(self, step: int) -> Tensor:
        plan = draw_windows(self.pool.index, self.guidance.batch_size, self.context_episodes, *self.address, "dt", step)
        history_length = self.backbone.config.history
        count = plan.steps(self.pool.index, history_length) * self.episodes.actions.shape[-1]
        rows = self.episodes.held(plan)
        held, device = plan.select(rows), self.episodes.states.device
        history = self.episodes.segments(held.episodes, held.starts, history_length)
        # The noise is drawn for the global batch, so that a row's noise does not depend on which worker holds it.
        noise_NBX = self.diffuser.draw_noise(self.guidance.batch_size, *self.address, "dt-noise", step)
        with autocast(self.guidance.precision, device):
            prompts = self.diffuser.generate(
                self.pool.prompts_at(held.prompt_episodes),
                self.pool.contexts_at(held.context_episodes),
                noise_NBX[:, rows].to(device),
            )
            errors = squared_action_errors(self.backbone, history, prompts)
        return errors.sum() / count
