"""95 % intervals from few independent units: Student's t, by task and for any statistic.

A *unit* is what could have come out differently: a training, a prompt or an initial state. Percentile bootstraps of so
few units cover too little (84 % with five), so none is used here. tests/statistics/test_coverage.py simulates every
interval.

Axes: N rows, G groups of rows that share a unit, S trainings, J tasks, T thresholds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
LEAST_UNITS = 3
"""Fewest units for an interval. With two, the variance has one degree of freedom: intervals are 4 times wider than with
three, and Satterthwaite's approximation is off."""
_ROUNDING = 1e-12
"""Standard error, as a share of the estimate, below which it is the rounding of equal numbers."""
LEAST_CROSSED = 5
"""Fewest trainings and tasks for an interval over both; with fewer it is far too wide."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; the bounds are NaN where there are too few units to know them."""

    estimate: float
    low: float = float("nan")
    high: float = float("nan")
    freedom: float = float("nan")
    """Degrees of freedom of Student's t."""

    @property
    def is_known(self) -> bool:
        """Whether there are bounds."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    def excludes(self, value: float) -> bool:
        """Return whether a value lies outside of known bounds."""
        return self.is_known and not self.low <= value <= self.high

    def p_value(self) -> float:
        """Return the two-sided p-value of an estimate of zero; NaN without bounds."""
        if not self.is_known:
            return float("nan")
        standard_error = (self.high - self.low) / 2 / _quantile(self.freedom)
        return float(2 * stdtr(self.freedom, -abs(self.estimate) / standard_error))


def student(estimate: float, variance: float, freedom: float) -> Interval:
    """Return an estimate with Student's interval; without bounds if nothing varied, but for rounding."""
    if not (variance > (_ROUNDING * estimate) ** 2 and freedom > 0):
        return Interval(estimate)
    half = _quantile(freedom) * float(np.sqrt(variance))
    return Interval(estimate, estimate - half, estimate + half, freedom)


def mean_interval(values: Sequence[float] | Floats) -> Interval:
    """Return the mean of independent units with Student's interval."""
    return stratified_interval({0: np.asarray(values, np.float64)})


def stratified_interval(units: Mapping[Any, Floats], weights: Mapping[Any, NDArray[Any]] | None = None) -> Interval:
    """Return the mean over tasks of the mean over each task's units; the tasks are fixed, the units random.

    The variance is that of a stratified mean, with Satterthwaite's degrees of freedom (Satterthwaite 1946, Biometrics
    Bulletin 2(6)): of two tasks it is Welch's interval. Unequal weights within a task enter as in a ratio estimate.

    Args:
        units: Task -> value of each of its units.
        weights: Task -> weight of each unit, such as its number of prompts; equal if not given.
    """
    means, variances, freedoms = [], [], []
    for task, values in units.items():
        count = len(values)
        share = np.full(count, 1 / count) if weights is None else weights[task] / weights[task].sum()
        mean = float(share @ values)
        means.append(mean)
        variances.append(float((share**2) @ (values - mean) ** 2) * count / max(count - 1, 1))
        freedoms.append(count - 1)
    estimate = float(np.mean(means))
    total = sum(variances)
    if min(freedoms) < LEAST_UNITS - 1 or total == 0:
        return Interval(estimate)
    freedom = total**2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    return student(estimate, total / len(means) ** 2, freedom)


def crossed_interval(values_SJ: Floats) -> Interval:
    """Return the mean over trainings and tasks, both random, where every training meets every task.

    Its variance, from the mean squares of a two-way layout, is (MS_training + MS_task - MS_rest) / (S J), but no less
    than either of the first two alone, with Satterthwaite's degrees of freedom (Searle, Casella and McCulloch, Variance
    Components, 1992, chapter 4).
    """
    num_trainings, num_tasks = values_SJ.shape
    mean = float(values_SJ.mean())
    if min(num_trainings, num_tasks) < LEAST_CROSSED:
        return Interval(mean)
    training_S, task_J = values_SJ.mean(axis=1), values_SJ.mean(axis=0)
    rest_SJ = values_SJ - training_S[:, None] - task_J + mean
    of_training = num_tasks * float(training_S.var(ddof=1))
    of_task = num_trainings * float(task_J.var(ddof=1))
    rest_freedom = (num_trainings - 1) * (num_tasks - 1)
    of_rest = float((rest_SJ**2).sum()) / rest_freedom
    square = max(of_training + of_task - of_rest, of_training, of_task)
    if square == 0:
        return Interval(mean)
    spread = of_training**2 / (num_trainings - 1) + of_task**2 / (num_tasks - 1) + of_rest**2 / rest_freedom
    freedom = max(square**2 / spread, min(num_trainings, num_tasks) - 1)
    return student(mean, square / values_SJ.size, freedom)


@dataclass(frozen=True)
class Jackknife:
    """A statistic of rows with its variance, from leaving out each group of rows in turn."""

    estimate: Any
    """Number, or array (T,)."""
    variance: Any
    num_groups: int

    def interval(self) -> Interval:
        """Return Student's interval of a number with one degree of freedom less than there are groups."""
        if self.num_groups < LEAST_UNITS:
            return Interval(float(self.estimate))
        return student(float(self.estimate), float(self.variance), self.num_groups - 1)

    def share_bounds(self) -> tuple[Any, Any]:
        """Return the bounds of a share, within 0 and 1; NaN where no group makes a difference.

        They are Student's on the scale of arcsin(sqrt(share)), which steadies the variance (Bartlett 1947, Biometrics
        3(1)).
        """
        share = np.clip(self.estimate, 0, 1)
        spread = np.sqrt(np.where(self.variance > _ROUNDING**2, self.variance, np.nan))
        with np.errstate(divide="ignore", invalid="ignore"):
            half = _quantile(self.num_groups - 1) * spread / (2 * np.sqrt(share * (1 - share)))
        angle = np.arcsin(np.sqrt(share))
        low, high = (np.sin(np.clip(angle + sign * half, 0, np.pi / 2)) ** 2 for sign in (-1, 1))
        return low, high


def jackknife(statistic: Callable[[NDArray[np.intp]], Any], groups_N: NDArray[np.intp]) -> Jackknife:
    """Leave out each group of rows in turn: the delete-a-group jackknife.

    Groups may differ in size (Busing, Meijer and van der Leeden 1999, Statistics and Computing 9, eqs. 9 to 11); for
    groups of one row it is the ordinary jackknife, and of a mean it gives the variance of that mean.

    Args:
        statistic: Row indices -> number, or array (T,).
        groups_N: Group of each row.
    """
    rows = np.arange(len(groups_N))
    whole = np.asarray(statistic(rows), np.float64)
    labels, sizes = np.unique(groups_N, return_counts=True)
    if len(labels) < 2:
        return Jackknife(whole, np.full_like(whole, np.nan), len(labels))
    shape = (-1,) + (1,) * whole.ndim
    left_out = np.stack([np.asarray(statistic(rows[groups_N != label]), np.float64) for label in labels])
    share = (sizes / len(rows)).reshape(shape)
    pseudo = whole / share - (1 / share - 1) * left_out
    centre = len(labels) * whole - ((1 - share) * left_out).sum(axis=0)
    variance = ((pseudo - centre) ** 2 / (1 / share - 1)).mean(axis=0)
    return Jackknife(whole, variance, len(labels))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979, Scandinavian Journal of Statistics 6(2)); NaN stays NaN.

    With them, the chance of one false difference among all of those tested is what it is for a single test.
    """
    values = np.asarray(p_values, np.float64)
    adjusted = np.full_like(values, np.nan)
    tested = np.flatnonzero(np.isfinite(values))
    ordered = tested[np.argsort(values[tested], kind="stable")]
    factors = len(ordered) - np.arange(len(ordered))
    adjusted[ordered] = np.minimum(np.maximum.accumulate(values[ordered] * factors), 1.0)
    return [float(value) for value in adjusted]


def _quantile(freedom: float) -> float:
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))
