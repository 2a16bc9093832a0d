"""Bootstrap intervals of means, and of paired differences between two methods.

Axes: P prompts, D bootstrap draws.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

DRAWS = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % percentile bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """How much more return a method gets than a baseline on the same tasks."""

    interval: Interval
    """Mean difference over tasks; the tasks are resampled."""
    tasks_better: int
    num_tasks: int

    @property
    def settled(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.interval.low > 0 or self.interval.high < 0


def bootstrap_mean(values: ArrayLike) -> Interval:
    """Return the mean of independent values; a single value has no width. The same values give the same interval."""
    sample = np.asarray(values, dtype=np.float64)
    rows = np.random.default_rng(0).integers(len(sample), size=(DRAWS, len(sample)))
    low, high = np.quantile(sample[rows].mean(axis=1), (0.025, 0.975))
    return Interval(float(sample.mean()), float(low), float(high))


def task_interval(episodes: pd.DataFrame) -> Interval:
    """Return the mean return of one method on one task, every prompt counting the same.

    Episodes that share a prompt are not independent, so prompts are resampled, and then the episodes of each.
    """
    generator = np.random.default_rng(0)
    returns_by_prompt = [own.to_numpy() for _, own in episodes.groupby("prompt")["return"]]
    draws_PD = np.stack(
        [own[generator.integers(len(own), size=(DRAWS, len(own)))].mean(axis=1) for own in returns_by_prompt]
    )
    prompts_PD = generator.integers(len(draws_PD), size=draws_PD.shape)
    draws_D = np.take_along_axis(draws_PD, prompts_PD, axis=0).mean(axis=0)
    low, high = np.quantile(draws_D, (0.025, 0.975))
    return Interval(float(np.mean([own.mean() for own in returns_by_prompt])), float(low), float(high))


def paired_difference(episodes: pd.DataFrame, method: str, baseline: str) -> PairedDifference:
    """Return `method` minus `baseline`, paired by task."""
    means = episodes.pivot_table(index="task", columns="method", values="return", aggfunc="mean")
    difference = (means[method] - means[baseline]).dropna()
    return PairedDifference(bootstrap_mean(difference), int((difference > 0).sum()), len(difference))
