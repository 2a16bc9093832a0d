"""The forward process and the reverse chain of a diffusion model.

Axes: B rows, X features, N noise levels that are trained, K of them that generation visits. Levels are counted from 0
in code: index n stands for the papers' n + 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from promptdiffuser.diffusion.predictions import PREDICTIONS
from promptdiffuser.diffusion.samplers import SAMPLERS, Levels, check_sampler
from promptdiffuser.diffusion.schedules import betas

Steer = Callable[[Tensor, int], Tensor]
"""(predicted x0 (B, X), place of the level among the K visited, from the noisiest) -> x0 (B, X) to go on with."""


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process. The paper gives neither N nor the schedule; these are Diffusion-QL's."""

    schedule: str = "vp"
    """Noise schedule: vp, cosine, linear, sigmoid or edm."""
    steps: int = 5
    """Number of noise levels N that the denoiser is trained on."""
    prediction: str = "noise"
    """What the denoiser predicts: noise, x0 or v."""
    sampler: str = "ddpm"
    """ddpm, ddim, dpm-solver or heun."""
    sampling_steps: int = 0
    """Levels that generation visits, spread over all N; 0 visits every one."""
    temperature: float = 1.0
    """Factor of the noise that generation starts from and of the noise it adds; Decision Diffuser has 0.5."""
    clip: bool = True
    """Clip every predicted x0 to the range of the data."""

    def __post_init__(self) -> None:
        """Refuse unknown names, impossible numbers, and schedules and samplers that do not fit."""
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"diffusion.prediction {self.prediction!r} is unknown; {PREDICTIONS.suggest(self.prediction)}"
            )
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"diffusion.temperature must be above 0 and finite, got {self.temperature}")
        abar_N = signal_levels(self)
        if not 0 <= self.sampling_steps <= self.steps:
            raise ValueError(
                f"diffusion.sampling_steps must be between 0 and diffusion.steps ({self.steps}), "
                f"got {self.sampling_steps}"
            )
        check_sampler(self.sampler, self.schedule, levels_at(abar_N, visited_steps(self)))


def signal_levels(config: DiffusionConfig) -> Tensor:
    """Return abar_1, ..., abar_N (N,) in float64; abar_n is the share of the data's variance left at level n."""
    return (1 - betas(config.schedule, config.steps)).cumprod(0)


def visited_steps(config: DiffusionConfig) -> tuple[int, ...]:
    """Return the levels that generation visits, falling from N - 1.

    Spread evenly from the noisiest, where generation starts, and not necessarily down to the cleanest ("trailing", Lin
    et al. 2024, section 3.3).
    """
    count = config.sampling_steps or config.steps
    return tuple(round(place * config.steps / count) - 1 for place in range(count, 0, -1))


def levels_at(abar_N: Tensor, steps: tuple[int, ...]) -> Levels:
    """Return the levels of a chain that visits some steps and goes on to clean data."""
    abar_K = abar_N[list(steps)]
    return Levels((*abar_K.sqrt().tolist(), 1.0), (*(1 - abar_K).sqrt().tolist(), 0.0))


class Diffusion:
    """Constants of one diffusion process and the two directions through it."""

    def __init__(self, config: DiffusionConfig, low_X: Tensor, high_X: Tensor) -> None:
        """Prepare the constants; `low_X` and `high_X` are the bounds of the data."""
        abar_N = signal_levels(config)
        self.config, self.low_X, self.high_X = config, low_X, high_X
        self.num_steps = config.steps
        self.steps = visited_steps(config)
        self.levels = levels_at(abar_N, self.steps)
        self.prediction = PREDICTIONS[config.prediction]
        self.signal_N = abar_N.sqrt().float().to(low_X.device)
        self.deviation_N = (1 - abar_N).sqrt().float().to(low_X.device)

    def noised(self, x0_BX: Tensor, step_B: Tensor, noise_BX: Tensor) -> Tensor:
        """Return sqrt(abar_n) x0 + sqrt(1 - abar_n) noise."""
        return self.signal_N[step_B, None] * x0_BX + self.deviation_N[step_B, None] * noise_BX

    def target(self, x0_BX: Tensor, step_B: Tensor, noise_BX: Tensor) -> Tensor:
        """Return what the denoiser should predict of `noised` with the same arguments."""
        return self.prediction.target(x0_BX, noise_BX, self.signal_N[step_B, None], self.deviation_N[step_B, None])

    def clipped(self, x0_BX: Tensor) -> Tensor:
        """Return x0 within the bounds of the data, unless clipping is off."""
        return torch.minimum(torch.maximum(x0_BX, self.low_X), self.high_X) if self.config.clip else x0_BX

    def predict_x0(self, noised_BX: Tensor, step: int | Tensor, predicted_BX: Tensor) -> Tensor:
        """Return x0 as a prediction implies it, clipped to the bounds unless that is off.

        `step` is the level of all rows, or that of each (B, 1).
        """
        return self.clipped(self.prediction.x0(noised_BX, predicted_BX, self.signal_N[step], self.deviation_N[step]))

    def sample(
        self, predict: Callable[[Tensor, Tensor], Tensor], noise_KBX: Tensor, steer: Steer | None = None
    ) -> Tensor:
        """Run the reverse chain from noise_KBX[-1]; differentiable in the predictor (reparameterised).

        Args:
            predict: (noised (B, X), step (B,)) -> prediction (B, X).
            noise_KBX: (K, B, X) standard normal: the start, and the noise added on entering each lower level.
            steer: Moves every predicted x0 before the chain goes on with it, within the bounds of the data.
        """

        def denoise(x_BX: Tensor, level: int) -> Tensor:
            step = self.steps[level]
            step_B = torch.full((len(x_BX),), step, device=x_BX.device)
            x0_BX = self.predict_x0(x_BX, step, predict(x_BX, step_B))
            return x0_BX if steer is None else self.clipped(steer(x0_BX, level))

        return SAMPLERS[self.config.sampler].run(denoise, self.levels, self.config.temperature * noise_KBX)
