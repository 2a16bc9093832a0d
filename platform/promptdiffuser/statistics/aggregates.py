"""One number or curve from the scores of all runs on all tasks, as Agarwal et al. 2021 recommend (arXiv:2108.13264).

A statistic is a function of scores (..., N, J) that returns numbers (...). Intervals leave out each unit in turn
(`intervals.jackknife`), so copies of one run count once. Axes: N and M runs of two methods, J tasks, T thresholds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptdiffuser.errors import UserError
from promptdiffuser.statistics.intervals import Interval, jackknife
from promptdiffuser.statistics.scores import Runs, linked

Scores = NDArray[np.float64]

LEAST_FOR_SHARE = 5
"""Fewest units for the interval of a probability of improvement: with fewer it takes too few values."""
LEAST_FOR_PROFILE = 10
"""Fewest units for the band of a performance profile: a share at one threshold takes fewer values still."""


def interquartile_mean(scores_NJ: Scores) -> Any:
    """Return the mean of the middle half of all scores (..., N, J), runs and tasks pooled.

    As rliable's `aggregate_iqm` (rliable/metrics.py): a quarter of the scores, rounded down, is cut at either end.
    """
    pooled = scores_NJ.reshape(*scores_NJ.shape[:-2], -1)
    number = pooled.shape[-1]
    cut = number // 4
    middle = np.partition(pooled, (cut, number - cut - 1), axis=-1)[..., cut : number - cut]
    return middle.mean(axis=-1)


def mean(scores_NJ: Scores) -> Any:
    """Return the mean over tasks of the mean over runs; rliable's `aggregate_mean`."""
    return scores_NJ.mean(axis=(-2, -1))


def median(scores_NJ: Scores) -> Any:
    """Return the median over tasks of the mean over runs; rliable's `aggregate_median`."""
    return np.median(scores_NJ.mean(axis=-2), axis=-1)


def optimality_gap(scores_NJ: Scores) -> Any:
    """Return by how much scores fall short of the expert's 1, more than 1 counting as 1.

    As rliable's `aggregate_optimality_gap` (rliable/metrics.py) with gamma 1; lower is better.
    """
    return 1 - np.minimum(scores_NJ, 1).mean(axis=(-2, -1))


def aggregate(runs: Runs, statistic: Callable[[Scores], Any]) -> Interval:
    """Return a statistic of a method's runs with its interval."""
    return jackknife(lambda rows: statistic(runs.scores_NJ[rows]), runs.units_N).interval()


def probability_of_improvement(own: Runs, other: Runs) -> Interval:
    """Return how probably a run scores higher than a run of the baseline on the same task, mean over tasks.

    As rliable's `probability_of_improvement` (rliable/metrics.py): all pairs of runs are compared and ties count half,
    which is the Mann-Whitney statistic over the number of pairs. The interval leaves out the runs of both methods that
    share a unit of either; it has no bounds with fewer than `LEAST_FOR_SHARE` units, or if all pairs have one winner.

    Raises:
        UserError: The methods have different numbers of tasks.
    """
    if own.scores_NJ.shape[1] != other.scores_NJ.shape[1]:
        raise UserError(
            f"{own.scores_NJ.shape[1]} tasks cannot be compared with the baseline's {other.scores_NJ.shape[1]}; take "
            "both from one call of statistics.scores.run_scores"
        )
    wins_NMJ = np.heaviside(own.scores_NJ[:, None] - other.scores_NJ, 0.5)
    units = _common_units(own, other)

    def kept(runs: Runs, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return a method's runs among the rows; all of them where it has one unit."""
        count = len(runs.units_N)
        return rows[rows < count] if runs.num_units > 1 else np.arange(count)

    def share(rows: NDArray[np.intp]) -> Any:
        return wins_NMJ[kept(own, rows)][:, kept(other, rows)].mean()

    found = jackknife(share, units)
    estimate = float(found.estimate)
    if found.num_groups < LEAST_FOR_SHARE:
        return Interval(estimate)
    low, high = found.share_bounds()
    return Interval(estimate, float(low), float(high), found.num_groups - 1)


def _common_units(own: Runs, other: Runs) -> NDArray[np.intp]:
    """Return the unit of each run number: runs that share a unit in either method are one unit.

    A method with one unit is taken as it is: nothing of it varies.
    """
    count = max(len(own.units_N), len(other.units_N))
    keys = []
    for runs in (own, other):
        if runs.num_units > 1:
            beyond = np.arange(count - len(runs.units_N)) + runs.units_N.max() + 1
            keys.append(np.concatenate([runs.units_N, beyond]))
    return linked(keys, count) if keys else np.zeros(count, np.intp)


@dataclass(frozen=True)
class PerformanceProfile:
    """Which share of a method's runs scores above each threshold, with its pointwise 95 % band."""

    thresholds_T: Scores
    share_T: Scores
    low_T: Scores
    """NaN where the band is not known."""
    high_T: Scores


def performance_profile(runs: Runs, thresholds_T: Scores) -> PerformanceProfile:
    """Return the distribution of run scores: the share of all scores above each of the ascending thresholds.

    As rliable's `create_performance_profile` (rliable/library.py) with score distributions. There is no band with fewer
    than `LEAST_FOR_PROFILE` units, nor where all of them have an equal share.
    """
    above_NT = (runs.scores_NJ[:, :, None] > thresholds_T).mean(axis=1)
    found = jackknife(lambda rows: above_NT[rows].mean(axis=0), runs.units_N)
    low_T = high_T = np.full(len(thresholds_T), np.nan)
    if found.num_groups >= LEAST_FOR_PROFILE:
        low_T, high_T = found.share_bounds()
    return PerformanceProfile(thresholds_T, found.estimate, low_T, high_T)
