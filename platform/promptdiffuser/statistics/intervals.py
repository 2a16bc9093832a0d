"""Percentile intervals from bootstrap resamples.

The interval is that of Agarwal et al. 2021 (arXiv:2108.13264, section 4.1): the runs of each task are drawn again with
replacement, and the 2.5th and 97.5th percentiles of the number in question over such resamples are its bounds.
Axes: R resamples, N runs, J tasks.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from promptdiffuser.evaluation.scores import CONFIDENCE, RESAMPLES, bootstrap_interval
from promptdiffuser.seeding import numpy_generator

Tasks = Literal["fixed", "sampled"]
"""Whether a number is about the test tasks as they are, or about tasks of which they are a random sample."""
_NUMBERS_AT_ONCE = 2**22
_TAIL = (1 - CONFIDENCE) / 2


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % percentile bootstrap interval."""

    estimate: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Return whether a value lies outside."""
        return not self.low <= value <= self.high


def bounds(draws_R: NDArray[Any]) -> NDArray[np.float64]:
    """Return the lower and the upper bound (2, ...) of what was drawn (R, ...)."""
    return np.asarray(np.quantile(draws_R, (_TAIL, 1 - _TAIL), axis=0))


def bootstrap(
    scores_NJ: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], Any],
    tasks: Tasks = "fixed",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return a number computed from scores (N, J) with its stratified bootstrap interval.

    As rliable's `get_interval_estimates` with `StratifiedBootstrap` (rliable/library.py): runs are drawn within each
    task; with `tasks="sampled"` (there `task_bootstrap`) tasks are drawn too. Equal scores give an equal interval.

    Args:
        scores_NJ: One row a run, one column a task.
        statistic: Function of scores (..., N, J) that returns numbers (...), as those in statistics/aggregates.py.
        tasks: What the number is about.
        seed: Address of the resamples.
        resamples: How many.
    """
    low, high = bounds(resampled(scores_NJ, statistic, tasks, seed, resamples))
    return Interval(float(statistic(scores_NJ)), float(low), float(high))


def resampled(
    values_NJ: NDArray[Any],
    statistic: Callable[[NDArray[Any]], Any],
    tasks: Tasks = "fixed",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> NDArray[np.float64]:
    """Return a statistic (R, ...) of resampled values; memory is bounded whatever their number."""
    return np.concatenate([statistic(drawn_RNJ) for drawn_RNJ in _draws(values_NJ, tasks, seed, resamples)])


def _draws(values_NJ: NDArray[Any], tasks: Tasks, seed: int, resamples: int) -> Iterator[NDArray[Any]]:
    generator = numpy_generator(seed, "stratified-bootstrap")
    at_once = max(1, _NUMBERS_AT_ONCE // values_NJ.size)
    num_runs, num_tasks = values_NJ.shape
    for start in range(0, resamples, at_once):
        number = min(at_once, resamples - start)
        rows = generator.integers(num_runs, size=(number, num_runs, num_tasks))
        columns = np.arange(num_tasks)
        if tasks == "sampled":
            columns = generator.integers(num_tasks, size=(number, 1, num_tasks))
        yield values_NJ[rows, columns]


def mean_interval(units: Mapping[int, NDArray[np.float64]], seed: int = 0) -> Interval:
    """Return the mean over tasks of the mean over each task's units, which are resampled; tasks may differ in number.

    The interval is the evaluation's own (`promptdiffuser.evaluation.scores.bootstrap_interval`).
    """
    estimate = np.mean([values.mean() for values in units.values()])
    return Interval(float(estimate), *bootstrap_interval(units, seed))


def task_interval(episodes: pd.DataFrame) -> Interval:
    """Return the mean return of one method on one task, every prompt counting the same.

    Episodes that share a prompt are not independent, so prompts are resampled, each with all its episodes. The mean of
    a prompt already varies by its episodes; drawing those again would count their variance twice (Davison and Hinkley,
    Bootstrap Methods and their Application, 1997, section 3.8).
    """
    return mean_interval({0: episodes.groupby("prompt")["return"].mean().to_numpy()})
