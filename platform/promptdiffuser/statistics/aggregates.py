"""One number or curve from the scores of all runs on all tasks, as Agarwal et al. 2021 recommend (arXiv:2108.13264).

`statistic` functions take scores (..., N, J) and return (...), so they serve a matrix of scores and all its resamples
at once. Axes: R resamples, N and M runs of two methods, J tasks, T thresholds.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptdiffuser.errors import UserError
from promptdiffuser.evaluation.scores import RESAMPLES
from promptdiffuser.seeding import numpy_generator
from promptdiffuser.statistics.intervals import Interval, Tasks, bounds, resampled

Scores = NDArray[np.float64]


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


def probability_of_improvement(scores_NJ: Scores, baseline_MJ: Scores, seed: int = 0) -> Interval:
    """Return how probably a run scores higher than a run of the baseline on the same task, mean over tasks.

    As rliable's `probability_of_improvement` (rliable/metrics.py): all pairs of runs are compared and ties count half,
    which is the Mann-Whitney statistic over the number of pairs. The runs of either method are resampled within each
    task, independently, as in `StratifiedIndependentBootstrap` (rliable/library.py).

    Raises:
        UserError: The methods have different numbers of tasks.
    """
    if scores_NJ.shape[1] != baseline_MJ.shape[1]:
        raise UserError(
            f"{scores_NJ.shape[1]} tasks cannot be compared with the baseline's {baseline_MJ.shape[1]}; take both from "
            "one call of statistics.scores.run_scores"
        )
    generator = numpy_generator(seed, "probability-of-improvement")
    shares_J, draws_JR = [], []
    for own_N, other_M in zip(scores_NJ.T, baseline_MJ.T, strict=True):
        wins_NM = np.heaviside(own_N[:, None] - other_M, 0.5)
        counts_RN, counts_RM = _counts(generator, len(own_N)), _counts(generator, len(other_M))
        shares_J.append(wins_NM.mean())
        draws_JR.append(((counts_RN @ wins_NM) * counts_RM).sum(axis=1) / wins_NM.size)
    low, high = bounds(np.mean(draws_JR, axis=0))
    return Interval(float(np.mean(shares_J)), float(low), float(high))


@dataclass(frozen=True)
class PerformanceProfile:
    """Which share of a method's runs scores above each threshold, with its pointwise 95 % band."""

    thresholds_T: NDArray[np.float64]
    share_T: NDArray[np.float64]
    low_T: NDArray[np.float64]
    high_T: NDArray[np.float64]


def performance_profile(
    scores_NJ: Scores, thresholds_T: NDArray[np.float64], tasks: Tasks = "fixed", seed: int = 0
) -> PerformanceProfile:
    """Return the distribution of run scores: the share of all scores above each of the ascending thresholds.

    As rliable's `create_performance_profile` (rliable/library.py) with score distributions.
    """
    # A score is above threshold t if more than t thresholds lie below it, so one histogram answers for all of them.
    below_NJ = np.searchsorted(thresholds_T, scores_NJ, side="left")

    def shares(below_RNJ: NDArray[np.int64]) -> NDArray[np.float64]:
        counts = _histograms(below_RNJ.reshape(len(below_RNJ), -1), len(thresholds_T) + 1)
        return counts[:, :0:-1].cumsum(axis=1)[:, ::-1] / scores_NJ.size

    low_T, high_T = bounds(resampled(below_NJ, shares, tasks, seed))
    return PerformanceProfile(thresholds_T, shares(below_NJ[None])[0], low_T, high_T)


def _counts(generator: np.random.Generator, number: int) -> NDArray[np.float64]:
    """Return how often each of some runs is drawn in each resample (R, number)."""
    return _histograms(generator.integers(number, size=(RESAMPLES, number)), number).astype(np.float64)


def _histograms(values_RK: NDArray[np.int64], bins: int) -> NDArray[np.int64]:
    """Count the values 0 to bins - 1 in each row."""
    rows = len(values_RK)
    return np.bincount((values_RK + bins * np.arange(rows)[:, None]).ravel(), minlength=rows * bins).reshape(rows, bins)
