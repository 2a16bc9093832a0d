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
    aggregate,
    interquartile_mean,
    mean,
    median,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)
from promptdiffuser.statistics.scores import Runs

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


def runs_of(table: np.ndarray) -> Runs:
    """Return runs that are all independent."""
    return Runs(table, np.arange(len(table)), "prompt_source")


@settings(deadline=None, max_examples=40)
@given(PAIRS)
def test_probability_of_improvement_agrees_with_rliable_and_scipy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Ties count half; the two directions add up to one; the interval lies within 0 and 1 where it is known."""
    own, other = pair
    ours = probability_of_improvement(runs_of(own), runs_of(other))
    wins = [scipy.stats.mannwhitneyu(x, y).statistic for x, y in zip(own.T, other.T, strict=True)]
    assert ours.estimate == pytest.approx(np.mean(wins) / (len(own) * len(other)))
    assert ours.estimate == pytest.approx(metrics.probability_of_improvement(own, other))
    assert ours.estimate + probability_of_improvement(runs_of(other), runs_of(own)).estimate == pytest.approx(1)
    assert not ours.is_known or 0 <= ours.low <= ours.estimate <= ours.high <= 1


def test_methods_of_different_tasks_are_refused() -> None:
    with pytest.raises(UserError, match="3 tasks cannot be compared with the baseline's 2"):
        probability_of_improvement(runs_of(np.zeros((4, 3))), runs_of(np.zeros((4, 2))))


def test_copies_of_runs_change_no_interval() -> None:
    """Every run there twice says what each says once."""
    rng = np.random.default_rng(0)
    own, other = rng.normal(0.6, 0.3, (12, 3)), rng.normal(0.4, 0.3, (12, 3))
    twice = Runs(np.concatenate([own, own]), np.tile(np.arange(12), 2), "prompt_source")
    for statistic in (interquartile_mean, optimality_gap, mean):
        once, copied = aggregate(runs_of(own), statistic), aggregate(twice, statistic)
        assert (copied.low, copied.high) == pytest.approx((once.low, once.high), rel=0.05)
    thresholds = np.linspace(0, 1, 11)
    one, two = performance_profile(runs_of(own), thresholds), performance_profile(twice, thresholds)
    assert two.low_T == pytest.approx(one.low_T, nan_ok=True)
    once = probability_of_improvement(runs_of(own), runs_of(other))
    copied = probability_of_improvement(twice, runs_of(other))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=0.02)


def test_profile_agrees_with_rliable() -> None:
    """Shares at every threshold, scores equal to a threshold not counted as above it."""
    table = np.random.default_rng(0).normal(0.5, 0.3, (10, 4)).round(2)
    thresholds = np.linspace(-0.5, 1.5, 41).round(2)
    shares = np.array([metrics_share(table, threshold) for threshold in thresholds])
    ours = performance_profile(runs_of(table), thresholds)
    assert np.isin(table, thresholds).any()
    assert ours.share_T == pytest.approx(shares)
    known = np.isfinite(ours.low_T)
    assert known.any()
    assert (ours.low_T[known] <= ours.share_T[known]).all()
    assert (ours.share_T[known] <= ours.high_T[known]).all()


def metrics_share(table: np.ndarray, threshold: float) -> float:
    """Return the share of scores above a threshold, as rliable/library.py `run_score_deviation` computes it."""
    return float(np.mean(table > threshold))


@settings(deadline=None, max_examples=25)
@given(TABLES)
def test_a_profile_falls_from_everything_to_nothing(table: np.ndarray) -> None:
    """It is the share above each threshold, so it never rises."""
    profile = performance_profile(runs_of(table), np.array([-2.0, -1.5, 0.0, 0.3, 1.0, 3.0]))
    assert profile.share_T == pytest.approx([(table > threshold).mean() for threshold in profile.thresholds_T])
    assert (profile.share_T[0], profile.share_T[-1]) == (1, 0)
    assert (np.diff(profile.share_T) <= 0).all()


def test_where_all_runs_lie_above_a_threshold_there_is_no_band() -> None:
    """Nothing varies there; rounding of unequal numbers of copies must not look like spread."""
    scores = np.random.default_rng(0).uniform(0.5, 1, (11, 5))
    runs = Runs(scores, np.arange(11) % 10, "prompt_source")
    profile = performance_profile(runs, np.array([0.0, 0.7, 2.0]))
    assert profile.share_T[[0, 2]].tolist() == [1, 0]
    assert np.isnan(profile.low_T).tolist() == [True, False, True]
