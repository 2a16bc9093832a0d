"""Stratified bootstrap intervals agree with rliable's and scipy's, and cover what they should."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from promptdiffuser.statistics.aggregates import interquartile_mean, mean, median, optimality_gap
from promptdiffuser.statistics.intervals import Tasks, bootstrap, mean_interval, task_interval
from tests.analysis.frames import rliable_library

STATISTICS = [interquartile_mean, mean, median, optimality_gap]


def scores(seed: int = 0, runs: int = 12, tasks: int = 4) -> np.ndarray:
    """Return scores whose tasks differ in mean and spread."""
    rng = np.random.default_rng(seed)
    return np.linspace(0.2, 0.9, tasks) + np.linspace(0.05, 0.3, tasks) * rng.normal(size=(runs, tasks))


@pytest.mark.parametrize("tasks", ["fixed", "sampled"])
def test_agrees_with_rliable(tasks: Tasks) -> None:
    """All four numbers, with runs alone and with tasks too resampled; both draws are random, so up to their noise."""
    table = scores()
    np.random.seed(0)  # noqa: NPY002 - rliable draws from numpy's global state
    points, theirs = rliable_library().get_interval_estimates(
        {"a": table},
        lambda x: np.array([statistic(x) for statistic in STATISTICS]),
        task_bootstrap=tasks == "sampled",
        reps=4000,
    )
    for number, statistic in enumerate(STATISTICS):
        ours = bootstrap(table, statistic, tasks)
        width = ours.high - ours.low
        assert ours.estimate == pytest.approx(points["a"][number])
        assert (ours.low, ours.high) == pytest.approx(tuple(theirs["a"][:, number]), abs=0.06 * width)


def test_agrees_with_scipy() -> None:
    """With one task, the stratified bootstrap is the ordinary one."""
    values = scores()[:, :1]
    theirs = scipy.stats.bootstrap(
        (values[:, 0],), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(1)
    ).confidence_interval
    for ours in (bootstrap(values, mean), mean_interval({0: values[:, 0]})):
        assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.04 * (theirs.high - theirs.low))


def test_equal_scores_give_equal_intervals_whatever_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed is an address; a table too large to be resampled at once gives an interval of the same kind."""
    table = scores()
    ours = bootstrap(table, interquartile_mean)
    assert bootstrap(table.copy(), interquartile_mean) == ours
    assert bootstrap(table, interquartile_mean, seed=1) != ours
    monkeypatch.setattr("promptdiffuser.statistics.intervals._NUMBERS_AT_ONCE", 7 * table.size)
    in_pieces = bootstrap(table, interquartile_mean)
    assert (in_pieces.low, in_pieces.high) == pytest.approx((ours.low, ours.high), abs=0.05 * (ours.high - ours.low))


def test_covers_the_truth() -> None:
    """Over 400 data sets of 15 runs a task, a 95 % interval holds the true mean nearly that often."""
    truth = np.linspace(0.2, 0.9, 4).mean()
    held = [not bootstrap(scores(seed, 15), mean, resamples=500).excludes(truth) for seed in range(400)]
    assert 0.90 <= np.mean(held) <= 0.98


def test_prompts_are_resampled_with_their_episodes() -> None:
    """Two prompts of equal episodes: only the prompts vary, so the interval reaches from one to the other."""
    shared = pd.DataFrame({"prompt": [0] * 50 + [1] * 30, "return": [1.0] * 50 + [3.0] * 30})
    interval = task_interval(shared)
    assert (interval.estimate, interval.low, interval.high) == (2.0, 1.0, 3.0)
