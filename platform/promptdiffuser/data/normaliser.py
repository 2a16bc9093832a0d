"""Statistics of the training tasks; saved with every model, because inference needs the same ones.

The published code pools training *and test* data for its state statistics (mxu34/prompt-dt pdt_main.py,
`average_state_mean`); here they come from training tasks only, so nothing of a test task leaks. The published way is an
option for parity (`pretraining.statistics`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptdiffuser.data.episodes import Episodes

STD_FLOOR = 1e-6
"""Added to every deviation (pdt_main.py)."""


@dataclass(frozen=True)
class Normaliser:
    """Maps environment units to what the networks see, and bounds what a generated prompt may hold."""

    state_mean: Tensor
    """(S,)"""
    state_std: Tensor
    """(S,)"""
    state_low: Tensor
    """(S,) lowest normalised state of the training tasks."""
    state_high: Tensor
    """(S,)"""
    reward_mean: Tensor
    """()"""
    reward_std: Tensor
    """()"""
    reward_low: Tensor
    """() lowest normalised reward of the training tasks."""
    reward_high: Tensor
    """()"""
    return_scale: Tensor
    """() returns-to-go are divided by it."""

    @staticmethod
    def fit(parts: Iterable[Episodes], return_scale: float) -> "Normaliser":
        """Compute the statistics over every valid step of all episodes, in float64, one part in memory at a time."""
        pooled: _Moments | None = None
        for part in parts:
            steps = np.arange(part.rewards.shape[1]) < part.lengths[:, None]
            moments = _Moments.of(np.column_stack([part.observations[steps], part.rewards[steps]]))
            pooled = moments if pooled is None else pooled.merged_with(moments)
        if pooled is None:
            raise ValueError("a normaliser needs at least one episode")
        std = np.sqrt(pooled.squares / pooled.count) + STD_FLOOR
        low, high = (pooled.low - pooled.mean) / std, (pooled.high - pooled.mean) / std
        statistics = {
            "state_mean": pooled.mean[:-1],
            "state_std": std[:-1],
            "state_low": low[:-1],
            "state_high": high[:-1],
            "reward_mean": pooled.mean[-1],
            "reward_std": std[-1],
            "reward_low": low[-1],
            "reward_high": high[-1],
            "return_scale": return_scale,
        }
        return Normaliser(**{name: torch.tensor(value, dtype=torch.float32) for name, value in statistics.items()})

    def states(self, observations: Tensor) -> Tensor:
        """Normalise observations (..., S)."""
        return (observations - self.state_mean) / self.state_std

    def rewards(self, rewards: Tensor) -> Tensor:
        """Standardise rewards (...)."""
        return (rewards - self.reward_mean) / self.reward_std

    def observations(self, states: Tensor) -> Tensor:
        """Return normalised states (..., S) in the environment's units."""
        return states * self.state_std + self.state_mean

    def earned(self, rewards: Tensor) -> Tensor:
        """Return standardised rewards (...) in the environment's units."""
        return rewards * self.reward_std + self.reward_mean

    def tensors(self) -> dict[str, Tensor]:
        """Return the statistics by name, for a safetensors file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class _Moments:
    """Count, mean, sum of squared deviations and range of some rows, a number each column."""

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @staticmethod
    def of(rows: NDArray[np.floating]) -> "_Moments":
        values = rows.astype(np.float64)
        mean = values.mean(axis=0)
        return _Moments(len(values), mean, np.square(values - mean).sum(axis=0), values.min(axis=0), values.max(axis=0))

    def merged_with(self, other: "_Moments") -> "_Moments":
        """Combine two sets of rows exactly (Chan, Golub, LeVeque 1983, eq. 2.1)."""
        count = self.count + other.count
        apart = other.mean - self.mean
        return _Moments(
            count,
            self.mean + apart * (other.count / count),
            self.squares + other.squares + np.square(apart) * (self.count * other.count / count),
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )
