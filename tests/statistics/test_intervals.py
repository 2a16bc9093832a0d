"""Intervals against scipy's, and what has no interval."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from promptdiffuser.statistics.intervals import (
    crossed_interval,
    holm,
    jackknife,
    mean_interval,
    stratified_interval,
)

FLOATS = st.floats(-1e3, 1e3)


def test_of_one_sample_is_students() -> None:
    values = np.random.default_rng(0).gamma(2.0, 10.0, 7)
    test = scipy.stats.ttest_1samp(values, 0.0)
    ours, theirs = mean_interval(values), test.confidence_interval()
    assert (ours.estimate, ours.low, ours.high) == pytest.approx((values.mean(), theirs.low, theirs.high))
    assert ours.freedom == pytest.approx(6)
    assert ours.p_value() == pytest.approx(test.pvalue)


def test_of_two_tasks_is_welchs() -> None:
    """The mean of two tasks is half of a difference, one of them with its sign changed."""
    rng = np.random.default_rng(1)
    first, second = rng.normal(3, 1, 5), rng.normal(-1, 4, 9)
    test = scipy.stats.ttest_ind(first, -second, equal_var=False)
    ours, theirs = stratified_interval({7: first, 2: second}), test.confidence_interval()
    assert (ours.low, ours.high) == pytest.approx((theirs.low / 2, theirs.high / 2))
    assert ours.freedom == pytest.approx(test.df)
    assert ours.p_value() == pytest.approx(test.pvalue)


def test_equal_weights_change_nothing_and_unequal_ones_move_the_mean() -> None:
    values = {0: np.array([1.0, 2.0, 6.0]), 1: np.array([0.0, 1.0, 5.0])}
    same = stratified_interval(values, {task: np.full(3, 4) for task in values})
    assert same == stratified_interval(values)
    weighted = stratified_interval(values, {0: np.array([1, 1, 2]), 1: np.ones(3)})
    assert weighted.estimate == pytest.approx(((1 + 2 + 12) / 4 + 2) / 2)


@pytest.mark.parametrize("values", [[3.0], [3.0, 4.0], [2.0, 2.0, 2.0]])
def test_too_few_units_and_equal_ones_have_no_interval(values: list[float]) -> None:
    """Equal values are copies: that nothing varied does not make a number certain."""
    interval = mean_interval(values)
    assert interval.estimate == pytest.approx(np.mean(values))
    assert not interval.is_known
    assert not interval.excludes(100.0)
    assert np.isnan(interval.p_value())


def test_one_task_with_too_few_units_leaves_no_interval() -> None:
    rng = np.random.default_rng(0)
    assert not stratified_interval({0: rng.normal(size=9), 1: rng.normal(size=2)}).is_known
    assert stratified_interval({0: rng.normal(size=9), 1: rng.normal(size=3)}).is_known


def test_crossed_mean_squares_are_those_of_a_two_way_layout() -> None:
    """With no effect of trainings and the rest known, the variance is worked out by hand."""
    rng = np.random.default_rng(0)
    trainings, tasks = 3 * rng.normal(size=(6, 1)), 2 * rng.normal(size=(1, 7))
    values = trainings + tasks  # additive: the rest is zero
    variance = trainings.var(ddof=1) / 6 + tasks.var(ddof=1) / 7
    interval = crossed_interval(values)
    half = scipy.stats.t.ppf(0.975, interval.freedom) * np.sqrt(variance)
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half))
    assert not crossed_interval(values[:4]).is_known


@given(arrays(np.float64, st.integers(3, 12), elements=FLOATS))
def test_jackknife_of_a_mean_is_students_interval(values: np.ndarray) -> None:
    ours = jackknife(lambda rows: values[rows].mean(), np.arange(len(values))).interval()
    assert ours.estimate == pytest.approx(values.mean())
    if ours.is_known and np.ptp(values) > 1e-6:
        theirs = mean_interval(values)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


@given(arrays(np.float64, st.integers(3, 8), elements=FLOATS), st.integers(2, 4))
def test_copies_do_not_narrow_a_jackknife(values: np.ndarray, copies: int) -> None:
    """Every row several times, as one unit: the interval is that of the rows themselves."""
    rows = np.tile(np.arange(len(values)), copies)
    once = jackknife(lambda kept: values[kept].mean(), np.arange(len(values))).interval()
    many = jackknife(lambda kept: values[rows[kept]].mean(), rows).interval()
    assert (many.low, many.high) == pytest.approx((once.low, once.high), nan_ok=True, abs=1e-6)


def test_jackknife_of_unequal_groups_is_the_published_one() -> None:
    """Busing et al. 1999, eqs. 9 to 11, written out group by group."""
    values, groups = np.array([1.0, 4.0, 2.0, 8.0, 5.0, 7.0]), np.array([0, 0, 0, 1, 1, 2])
    whole, n = np.median(values), len(values)
    pseudo, weights = [], []
    for group in range(3):
        h = n / (groups == group).sum()
        pseudo.append(h * whole - (h - 1) * np.median(values[groups != group]))
        weights.append(h)
    centre = 3 * whole - sum((1 - 1 / h) * np.median(values[groups != g]) for g, h in enumerate(weights))
    variance = sum((p - centre) ** 2 / (h - 1) for p, h in zip(pseudo, weights, strict=True)) / 3
    ours = jackknife(lambda rows: np.median(values[rows]), groups)
    assert float(ours.estimate) == whole
    assert float(ours.variance) == pytest.approx(variance)


def test_bounds_of_a_share_stay_within_0_and_1() -> None:
    shares = np.array([1.0, 1.0, 0.9, 1.0, 1.0, 0.8])
    low, high = jackknife(lambda rows: shares[rows].mean(), np.arange(6)).share_bounds()
    assert 0 < low < shares.mean() < high <= 1
    nothing = jackknife(lambda rows: np.ones(6)[rows].mean(), np.arange(6)).share_bounds()
    assert np.isnan(nothing).all()


def test_holm_equals_the_step_down_rule() -> None:
    """Worked out by hand: 4 x 0.01, then 3 x 0.02 and the largest so far, then 2 x 0.03 and 0.5."""
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.9, float("nan"), 0.8]) == pytest.approx([1.0, float("nan"), 1.0], nan_ok=True)
    assert holm([]) == []
