"""Aggregates agree with rliable and scipy, whatever the scores."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rliable import metrics

from promptdiffuser.errors import UserError
from promptdiffuser.statistics.aggregates import (
    interquartile_mean,
    mean,
    median,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)
from tests.statistics.frames import rliable_library

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 6))
# Few values, so that there are ties.
VALUES = st.sampled_from([-1.5, 0.0, 0.25, 0.5, 1.0, 3.0])
TABLES = SIZES.flatmap(lambda shape: arrays(np.float64, shape, elements=VALUES))
PAIRS = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5)).flatmap(
    lambda sizes: st.tuples(*(arrays(np.float64, (runs, sizes[2]), elements=VALUES) for runs in sizes[:2]))
)


@given(TABLES)
def test_points_agree_with_rliable_and_scipy(table: np.ndarray) -> None:
    """The same numbers as rliable/metrics.py and, for the interquartile mean, scipy's trimmed mean."""
    assert interquartile_mean(table) == pytest.approx(metrics.aggregate_iqm(table))
    assert interquartile_mean(table) == pytest.approx(scipy.stats.trim_mean(table, 0.25, axis=None))
    assert mean(table) == pytest.approx(metrics.aggregate_mean(table))
    assert median(table) == pytest.approx(metrics.aggregate_median(table))
    assert optimality_gap(table) == pytest.approx(metrics.aggregate_optimality_gap(table))


@given(TABLES)
def test_statistics_take_many_tables_at_once(table: np.ndarray) -> None:
    """A batch of tables gives each table's number."""
    batch = np.stack([table, table[::-1] + 1])
    for statistic in (interquartile_mean, mean, median, optimality_gap):
        assert statistic(batch) == pytest.approx([statistic(batch[0]), statistic(batch[1])])


@settings(deadline=None, max_examples=40)
@given(PAIRS)
def test_probability_of_improvement_agrees_with_rliable_and_scipy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Ties count half; the two directions add up to one; the interval lies within 0 and 1."""
    own, other = pair
    ours = probability_of_improvement(own, other)
    wins = [scipy.stats.mannwhitneyu(x, y).statistic for x, y in zip(own.T, other.T, strict=True)]
    assert ours.estimate == pytest.approx(np.mean(wins) / (len(own) * len(other)))
    assert ours.estimate == pytest.approx(metrics.probability_of_improvement(own, other))
    assert ours.estimate + probability_of_improvement(other, own).estimate == pytest.approx(1)
    assert 0 <= ours.low <= ours.high <= 1


def test_interval_of_the_probability_agrees_with_rliable() -> None:
    """Both methods are resampled within tasks, each for itself; their numbers of runs differ."""
    rng = np.random.default_rng(0)
    own, other = rng.normal(0.6, 1, (12, 3)), rng.normal(0, 1, (8, 3))
    np.random.seed(0)  # noqa: NPY002 - rliable draws from numpy's global state
    _, theirs = rliable_library().get_interval_estimates(
        {"a": [own, other]}, lambda x, y: np.array([np.heaviside(x[:, None] - y, 0.5).mean()]), reps=10_000
    )
    ours = probability_of_improvement(own, other)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs["a"][:, 0]), abs=0.02)
    assert probability_of_improvement(own, other) == ours
    with pytest.raises(UserError, match="3 tasks cannot be compared with the baseline's 2"):
        probability_of_improvement(own, other[:, :2])


def test_profile_agrees_with_rliable() -> None:
    """Shares and bands at every threshold, scores equal to a threshold not counted as above it."""
    table = np.random.default_rng(0).normal(0.5, 0.3, (10, 4)).round(2)
    thresholds = np.linspace(-0.5, 1.5, 41).round(2)
    np.random.seed(0)  # noqa: NPY002 - rliable draws from numpy's global state
    shares, bands = rliable_library().create_performance_profile({"a": table}, thresholds, reps=4000)
    ours = performance_profile(table, thresholds)
    assert np.isin(table, thresholds).any()
    assert ours.share_T == pytest.approx(shares["a"])
    assert np.abs(np.stack([ours.low_T, ours.high_T]) - bands["a"]).max() <= 1.5 / table.size


@settings(deadline=None, max_examples=25)
@given(TABLES)
def test_a_profile_falls_from_everything_to_nothing(table: np.ndarray) -> None:
    """It is the share above each threshold, so it never rises, and neither do its bounds."""
    profile = performance_profile(table, np.array([-2.0, -1.5, 0.0, 0.3, 1.0, 3.0]))
    assert profile.share_T == pytest.approx([(table > threshold).mean() for threshold in profile.thresholds_T])
    assert (profile.share_T[0], profile.share_T[-1]) == (1, 0)
    for curve in (profile.share_T, profile.low_T, profile.high_T):
        assert (np.diff(curve) <= 0).all()
