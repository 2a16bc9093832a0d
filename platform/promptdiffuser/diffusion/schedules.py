"""Noise schedules: functions from the number of steps N to beta_1 ... beta_N, in float64.

The noised x_n = sqrt(abar_n) x0 + sqrt(1 - abar_n) noise keeps the scale of the data, abar_n being the product of the
(1 - beta) up to n. Schedules that are written as deviations sigma of noise on unscaled data are the same process seen
through x / sqrt(1 + sigma^2), which gives abar = 1 / (1 + sigma^2).

A schedule must end close to pure noise, because generation starts there: abar_N is at most `LARGEST_FINAL_SIGNAL`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from promptdiffuser.registry import Registry

LARGEST_FINAL_SIGNAL = 0.01
"""Largest abar_N from which starting at N(0, I) is sound; vp ends at 0.0064, unscaled linear at 0.95 for N = 5. For
sigmas it means sigma_N of at least 9.95 deviations of the data."""
LARGEST_BETA = 0.999
"""Cap of every beta (Nichol & Dhariwal 2021, section 3.2)."""
SCHEDULES: Registry[Callable[[int], Tensor]] = Registry("noise schedule")


@SCHEDULES.register("vp")
def vp(num_steps: int) -> Tensor:
    """Variance preserving with beta_min 0.1 and beta_max 10 (Xiao et al. 2022; Diffusion-QL's `vp_beta_schedule`)."""
    n = torch.arange(1, num_steps + 1, dtype=torch.float64)
    low, high = 0.1, 10.0
    return 1 - torch.exp(-low / num_steps - 0.5 * (high - low) * (2 * n - 1) / num_steps**2)


@SCHEDULES.register("cosine")
def cosine(num_steps: int) -> Tensor:
    """Cosine schedule with offset 0.008 (Nichol & Dhariwal 2021, equation 17)."""
    t = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    return _betas_of_signal(torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2).clamp(max=LARGEST_BETA)


@SCHEDULES.register("linear")
def linear(num_steps: int) -> Tensor:
    """Linear from 1e-4 to 0.02 at 1,000 steps (Ho et al. 2020), scaled by 1000 / N so that it still ends in noise."""
    scale = 1000 / num_steps
    return torch.linspace(scale * 1e-4, scale * 0.02, num_steps, dtype=torch.float64).clamp(max=LARGEST_BETA)


@SCHEDULES.register("sigmoid")
def sigmoid(num_steps: int) -> Tensor:
    """Sigmoid from -3 to 3 at temperature 1 (Jabri, Fleet, Chen 2022, figure 8; Chen 2023, algorithm 1)."""
    falling = torch.sigmoid(-torch.linspace(-3, 3, num_steps + 1, dtype=torch.float64))
    return _betas_of_signal((falling - falling[-1]) / (falling[0] - falling[-1])).clamp(max=LARGEST_BETA)


@SCHEDULES.register("edm")
def edm(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Sigmas evenly spaced in sigma^(1 / rho) (Karras et al. 2022, equation 5, constants of table 1).

    Their preconditioning for data of deviation 1, such as standardised prompts, is what the change of scale and the
    prediction `v` amount to: the network reads c_in x, theirs says -v, and the loss weighs all sigmas alike. Training
    draws sigma from a log-normal distribution there; here all N steps are equally likely, as for the other schedules.
    """
    sigma = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_steps, dtype=torch.float64).flip(0)
    signal = 1 / (1 + sigma ** (2 * rho))
    return _betas_of_signal(torch.cat([torch.ones(1, dtype=torch.float64), signal]))


def _betas_of_signal(signal: Tensor) -> Tensor:
    """Return the betas (N,) of abar_0 = 1, ..., abar_N."""
    return 1 - signal[1:] / signal[:-1]


def betas(name: str, num_steps: int) -> Tensor:
    """Return a registered schedule's betas (N,).

    Raises:
        ValueError: The schedule is unknown, N is below 1, or so much signal is left at step N that generation cannot
            start from pure noise.
    """
    if name not in SCHEDULES:
        raise ValueError(f"diffusion.schedule {name!r} is unknown; {SCHEDULES.suggest(name)}")
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
