"""The forward process and the reverse chain of a DDPM (Ho, Jain, Abbeel 2020) that predicts noise.

Axes: B rows, X features, N denoising steps. Steps are counted from 0 in code: index n stands for the paper's n + 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from promptdiffuser.diffusion.schedules import betas


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process. The paper gives neither N nor the schedule; these are Diffusion-QL's."""

    schedule: str = "vp"
    """Noise schedule: vp, cosine or linear."""
    steps: int = 5
    """Number of denoising steps N."""

    def __post_init__(self) -> None:
        """Refuse unknown schedules and those that do not end in noise."""
        betas(self.schedule, self.steps)


class Diffusion:
    """Constants of one diffusion process and the two directions through it."""

    def __init__(self, config: DiffusionConfig, low_X: Tensor, high_X: Tensor) -> None:
        """Prepare the constants; predicted x0 is clipped to [low, high], the bounds of the data."""
        device = low_X.device
        beta_N = betas(config.schedule, config.steps)
        abar_N = (1 - beta_N).cumprod(0)
        previous_N = torch.cat([torch.ones(1, dtype=torch.float64), abar_N[:-1]])
        self.num_steps, self.low_X, self.high_X = config.steps, low_X, high_X
        self.abar_N = abar_N.float().to(device)
        self.sqrt_abar_N = abar_N.sqrt().float().to(device)
        self.sqrt_noise_N = (1 - abar_N).sqrt().float().to(device)
        # Posterior q(x_{n-1} | x_n, x_0), Ho et al. equations 6 and 7.
        self.posterior_x0_N = (beta_N * previous_N.sqrt() / (1 - abar_N)).float().to(device)
        self.posterior_xn_N = ((1 - previous_N) * (1 - beta_N).sqrt() / (1 - abar_N)).float().to(device)
        self.posterior_std_N = (beta_N * (1 - previous_N) / (1 - abar_N)).sqrt().float().to(device)

    def noised(self, x0_BX: Tensor, step_B: Tensor, noise_BX: Tensor) -> Tensor:
        """Return sqrt(abar_n) x0 + sqrt(1 - abar_n) noise."""
        return self.sqrt_abar_N[step_B, None] * x0_BX + self.sqrt_noise_N[step_B, None] * noise_BX

    def predict_x0(self, noised_BX: Tensor, step: int, predicted_noise_BX: Tensor) -> Tensor:
        """Return x0 as the noise prediction implies it, clipped to the bounds."""
        x0 = (noised_BX - self.sqrt_noise_N[step] * predicted_noise_BX) / self.sqrt_abar_N[step]
        return torch.minimum(torch.maximum(x0, self.low_X), self.high_X)

    def sample(self, predict_noise: Callable[[Tensor, Tensor], Tensor], noise_NBX: Tensor) -> Tensor:
        """Run the reverse chain from noise_NBX[-1]; differentiable in the predictor (reparameterised).

        Args:
            predict_noise: (noised (B, X), step (B,)) -> noise (B, X).
            noise_NBX: (N, B, X) standard normal: the start, and the noise added on entering each lower step.
        """
        x_BX = noise_NBX[-1]
        for step in reversed(range(self.num_steps)):
            step_B = torch.full((len(x_BX),), step, device=x_BX.device)
            x0_BX = self.predict_x0(x_BX, step, predict_noise(x_BX, step_B))
            x_BX = self.posterior_x0_N[step] * x0_BX + self.posterior_xn_N[step] * x_BX
            if step:
                x_BX = x_BX + self.posterior_std_N[step] * noise_NBX[step - 1]
        return x_BX
