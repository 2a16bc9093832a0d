"""Samplers: ways down from pure noise to data, each a function of a denoiser that says what x0 is.

All work on x = signal x0 + deviation noise and are written in x0, so that they serve every prediction, and an x0
clipped to the data's bounds counts wherever it appears. They are differentiable in the denoiser.

Axes: B rows, X features, K levels that a chain visits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from promptdiffuser.registry import Registry

Denoise = Callable[[Tensor, int], Tensor]
"""(x (B, X), place of the level among those visited) -> x0 (B, X)."""


@dataclass(frozen=True)
class Levels:
    """The levels that a chain visits, from the noisiest to clean data, which has signal 1 and deviation 0."""

    signal: tuple[float, ...]
    """(K + 1,) sqrt(abar), rising."""
    deviation: tuple[float, ...]
    """(K + 1,) sqrt(1 - abar), falling."""

    def __len__(self) -> int:
        return len(self.signal) - 1

    def sigma(self, level: int) -> float:
        """Return deviation / signal: the noise on data that is not scaled."""
        return self.deviation[level] / self.signal[level]

    def log_step(self, level: int) -> float:
        """Return by how much log(signal / deviation) rises on leaving a level."""
        return math.log(self.sigma(level) / self.sigma(level + 1))


def ddpm(denoise: Denoise, levels: Levels, noise_KBX: Tensor) -> Tensor:
    """Ancestral sampling from q(x_next | x, x0) with its own variance (Ho, Jain, Abbeel 2020, equations 6 and 7).

    A chain may leave levels out: alpha and beta are those of all that lies between two visited levels.
    """
    x_BX = noise_KBX[-1]
    for level in range(len(levels)):
        next_signal = levels.signal[level + 1]
        variance, next_variance = levels.deviation[level] ** 2, levels.deviation[level + 1] ** 2
        alpha = (levels.signal[level] / next_signal) ** 2
        beta = 1 - alpha
        x0_BX = denoise(x_BX, level)
        x_BX = beta * next_signal / variance * x0_BX + next_variance * math.sqrt(alpha) / variance * x_BX
        if level + 1 < len(levels):
            x_BX = x_BX + math.sqrt(beta * next_variance / variance) * noise_KBX[-level - 2]
    return x_BX


def ddim(denoise: Denoise, levels: Levels, noise_KBX: Tensor) -> Tensor:
    """Without new noise (Song, Meng, Ermon 2021, equation 12 with eta = 0); the noise is what x and x0 imply."""
    x_BX = noise_KBX[-1]
    for level in range(len(levels)):
        x_BX = _towards(denoise(x_BX, level), x_BX, levels, level)
    return x_BX


def dpm_solver(denoise: Denoise, levels: Levels, noise_KBX: Tensor) -> Tensor:
    """DPM-Solver++(2M): x0 extrapolated linearly in log(signal / deviation) (Lu et al. 2022, algorithm 2).

    The first step has nothing to extrapolate from and the last is infinitely long, so both are DDIM's.
    """
    x_BX = noise_KBX[-1]
    previous_BX = x_BX
    for level in range(len(levels)):
        x0_BX = denoise(x_BX, level)
        ahead_BX = x0_BX
        if 0 < level < len(levels) - 1:
            ahead_BX = x0_BX + levels.log_step(level) / (2 * levels.log_step(level - 1)) * (x0_BX - previous_BX)
        x_BX, previous_BX = _towards(ahead_BX, x_BX, levels, level), x0_BX
    return x_BX


def heun(denoise: Denoise, levels: Levels, noise_KBX: Tensor) -> Tensor:
    """Heun's method in x / signal over sigma (Karras et al. 2022, algorithm 1): two evaluations a step, at last one.

    The slopes at both ends differ by (x0 there - x0 here) / sigma_next, which leaves a correction of an Euler step.
    """
    x_BX = noise_KBX[-1]
    for level in range(len(levels)):
        x0_BX = denoise(x_BX, level)
        x_BX = _towards(x0_BX, x_BX, levels, level)
        if level + 1 < len(levels):
            weight = levels.signal[level + 1] * (levels.sigma(level) / levels.sigma(level + 1) - 1) / 2
            x_BX = x_BX + weight * (denoise(x_BX, level + 1) - x0_BX)
    return x_BX


def _towards(x0_BX: Tensor, x_BX: Tensor, levels: Levels, level: int) -> Tensor:
    """Go to the next level along a fixed x0, keeping the noise that x and x0 imply."""
    kept = levels.deviation[level + 1] / levels.deviation[level]
    return (levels.signal[level + 1] - kept * levels.signal[level]) * x0_BX + kept * x_BX


@dataclass(frozen=True)
class Sampler:
    """A sampler and how long its steps may be."""

    run: Callable[[Denoise, Levels, Tensor], Tensor]
    """(denoise, the K levels, noise (K, B, X)) -> samples (B, X). The chain starts from the last noise; samplers
    that add noise take the others by falling index, on entering each lower level."""
    largest_fall: float = math.inf
    """Largest factor by which sigma may fall in one step, the last apart."""


SAMPLERS = Registry(
    "sampler",
    {
        "ddpm": Sampler(ddpm),
        "ddim": Sampler(ddim),
        "dpm-solver": Sampler(dpm_solver),
        # Taking the slope at the end of a step for half of it is far off where sigma falls steeply: with a known
        # mixture the samples' deviation is up to 57 times as large at a fall of 6,600, a seventh larger at 10, right
        # at 3.
        "heun": Sampler(heun, largest_fall=10.0),
    },
)


def check_sampler(name: str, schedule: str, levels: Levels) -> None:
    """Raise a `ValueError` unless the sampler is known and its steps over a schedule's levels are short enough."""
    if name not in SAMPLERS:
        raise ValueError(f"diffusion.sampler {name!r} is unknown; {SAMPLERS.suggest(name)}")
    fall = max((math.exp(levels.log_step(level)) for level in range(len(levels) - 1)), default=1.0)
    if fall > (limit := SAMPLERS[name].largest_fall):
        raise ValueError(
            f"diffusion.sampler {name!r} does not fit diffusion.schedule {schedule!r} over {len(levels)} steps: sigma "
            f"falls {fall:.0f}-fold in one of them, more than {limit:.0f}-fold; take another sampler, schedule edm or "
            "vp, or more steps"
        )
