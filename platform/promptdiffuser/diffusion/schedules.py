"""Noise schedules: functions from the number of steps N to beta_1 ... beta_N, in float64.

A schedule must end close to pure noise, because generation starts there: abar_N is at most `LARGEST_FINAL_SIGNAL`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

LARGEST_FINAL_SIGNAL = 0.01
"""Largest abar_N from which starting at N(0, I) is sound; vp ends at 0.0064, unscaled linear at 0.95 for N = 5."""
LARGEST_BETA = 0.999
"""Cap of every beta (Nichol & Dhariwal 2021, section 3.2)."""


def vp(num_steps: int) -> Tensor:
    """Variance preserving with beta_min 0.1 and beta_max 10 (Xiao et al. 2022; Diffusion-QL's `vp_beta_schedule`)."""
    n = torch.arange(1, num_steps + 1, dtype=torch.float64)
    low, high = 0.1, 10.0
    return 1 - torch.exp(-low / num_steps - 0.5 * (high - low) * (2 * n - 1) / num_steps**2)


def cosine(num_steps: int) -> Tensor:
    """Cosine schedule with offset 0.008 (Nichol & Dhariwal 2021, equation 17)."""
    t = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    signal = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - signal[1:] / signal[:-1]).clamp(max=LARGEST_BETA)


def linear(num_steps: int) -> Tensor:
    """Linear from 1e-4 to 0.02 at 1,000 steps (Ho et al. 2020), scaled by 1000 / N so that it still ends in noise."""
    scale = 1000 / num_steps
    return torch.linspace(scale * 1e-4, scale * 0.02, num_steps, dtype=torch.float64).clamp(max=LARGEST_BETA)


SCHEDULES: dict[str, Callable[[int], Tensor]] = {"vp": vp, "cosine": cosine, "linear": linear}


def betas(name: str, num_steps: int) -> Tensor:
    """Return a registered schedule's betas (N,).

    Raises:
        ValueError: The schedule is unknown, N is below 1, or so much signal is left at step N that generation cannot
            start from pure noise.
    """
    if name not in SCHEDULES:
        raise ValueError(f"diffusion.schedule {name!r} is unknown; known: {', '.join(SCHEDULES)}")
    if num_steps < 1:
        raise ValueError(f"diffusion.steps must be at least 1, got {num_steps}")
    values = SCHEDULES[name](num_steps)
    final_signal = float((1 - values).prod())
    if final_signal > LARGEST_FINAL_SIGNAL:
        raise ValueError(
            f"diffusion.schedule {name!r} with diffusion.steps {num_steps} keeps abar_N = {final_signal:.3f}, more "
            f"than {LARGEST_FINAL_SIGNAL}: generation cannot start from pure noise; take more steps or another schedule"
        )
    return values
