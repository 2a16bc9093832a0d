"""ZO-RankSGD: descent by the ranks of random perturbations alone (Tang, Rybin and Chang, arXiv 2303.03751).

Axes: P searches side by side, M perturbations of each, X numbers that are searched.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from promptdiffuser.data.plans import Address
from promptdiffuser.rng import normal_rows


@dataclass(frozen=True)
class RankSearchConfig:
    """A search by ranks. "The author's code" is that of Prompt-Tuning DT (knight-fzq/mtdt at 595ccd5)."""

    steps: int = 20
    """Updates (10 an outer iteration, repeated, in the author's code)."""
    perturbations: int = 15
    """Perturbations m that are ranked in one update."""
    top: int = 0
    """How many of the best are ranked (k), the others being worse than these and equal among themselves; 0 ranks
    all."""
    smoothing: float = 0.3
    """Deviation mu of the perturbations, in normalised units (1.0 in the author's code)."""
    step_size: float = 0.03
    """Step size (1e-4 in the author's code, by which ten steps leave a prompt where it is)."""
    momentum: float = 0.5
    """Share of the last search direction that stays in the next."""

    def __post_init__(self) -> None:
        """Refuse searches that find nothing."""
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.perturbations < 2:
            raise ValueError(f"perturbations must be at least 2 to have ranks, got {self.perturbations}")
        if not 0 <= self.top <= self.perturbations:
            raise ValueError(f"top must be between 0 (all) and perturbations ({self.perturbations}), got {self.top}")
        for name in ("smoothing", "step_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")


def rank_gradient(noise_PMX: Tensor, losses_PM: Tensor, top: int = 0) -> Tensor:
    """Estimate a direction of ascent (P, X) of the loss from the order of losses at x + mu * noise.

    It is the mean of x_j - x_i, divided by mu, over the pairs (i, j) in which i is known to be better (the paper's
    equation for a k-ranking oracle): all pairs if all are ranked, or else those with one of the `top` best in them.
    The author's code weighs by m - 2 rank in the place of m - 1 - 2 rank, a constant pull to the mean perturbation.
    Losses that are not a number count as the worst.
    """
    m = losses_PM.shape[1]
    k = top or m
    ranks_PM = losses_PM.nan_to_num(nan=torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    # Of how many pairs it is the worse one, less of how many it is the better one.
    weights_PM = torch.where(ranks_PM < k, 2 * ranks_PM - (m - 1), k)
    num_pairs = k * (k - 1) / 2 + k * (m - k)
    return torch.einsum("pm,pmx->px", weights_PM.to(noise_PMX.dtype), noise_PMX) / num_pairs


def rank_search(
    start_PX: Tensor, losses_at: Callable[[Tensor, int], Tensor], config: RankSearchConfig, address: Address
) -> Tensor:
    """Return where searches (P, X) end that start at `start_PX`.

    Args:
        start_PX: Where they start.
        losses_at: (candidates (P, M, X), update) -> their losses (P, M), of which the order within a row matters.
        config: The search.
        address: Where the perturbations are drawn.
    """
    x_PX, direction_PX = start_PX, torch.zeros_like(start_PX)
    shape = (config.perturbations, start_PX.shape[1])
    for step in range(config.steps):
        noise_PMX = normal_rows(len(start_PX), shape, *address, "perturbations", step).to(start_PX.device)
        losses_PM = losses_at(x_PX[:, None] + config.smoothing * noise_PMX, step)
        direction_PX = config.momentum * direction_PX + rank_gradient(noise_PMX, losses_PM, config.top)
        x_PX = x_PX - config.step_size * direction_PX
    return x_PX
