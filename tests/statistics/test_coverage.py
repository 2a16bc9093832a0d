"""Every interval that a page or a table prints holds the truth 93 to 97 % of the time, or is not printed.

Methods are simulated from frames of episodes as an evaluation writes them: five fixed tasks, normal effects of
trainings, prompts and episodes. A simulation of 2,000 experiments is off by 1 % twice in a thousand times, so 1 % is
allowed.
"""

from collections.abc import Callable

import numpy as np
import pytest

from promptdiffuser.statistics.aggregates import (
    aggregate,
    interquartile_mean,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)
from promptdiffuser.statistics.intervals import crossed_interval, mean_interval, stratified_interval
from promptdiffuser.statistics.paired import mean_return, paired_difference
from promptdiffuser.statistics.scores import Runs
from tests.statistics.frames import frame

EXPERIMENTS = 2_000
NOMINAL = (0.92, 0.98)
TASKS = 5
SCORES = np.array([0.6, 0.8, 0.9, 0.95, 0.7])  # of the five tasks
COUNTS = [2, 3, 5, 10]

Coverage = dict[int, float | None]


def share_held(lows: list[float], highs: list[float], truth: float) -> float | None:
    """Return how often the intervals hold the truth; None if there are none."""
    low, high = np.array(lows), np.array(highs)
    known = np.isfinite(low)
    if known.mean() < 0.5:
        return None
    return float(((low <= truth) & (truth <= high))[known].mean())


def assert_nominal(share: float | None, expected: bool) -> None:
    if expected:
        assert share is not None
        assert NOMINAL[0] <= share <= NOMINAL[1]
    else:
        assert share is None


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("unequal", [False, True], ids=["equal spread", "unequal spread"])
def test_mean_over_prompts_of_fixed_tasks(count: int, unequal: bool) -> None:
    rng = np.random.default_rng(count)
    found = []
    for _ in range(EXPERIMENTS):
        spread = np.exp(rng.normal(size=TASKS)) if unequal else np.ones(TASKS)
        found.append(stratified_interval({task: spread[task] * rng.normal(size=count) for task in range(TASKS)}))
    assert_nominal(share_held([i.low for i in found], [i.high for i in found], 0.0), expected=count > 2)


@pytest.mark.parametrize("count", COUNTS)
def test_mean_over_trainings_or_tasks(count: int) -> None:
    rng = np.random.default_rng(count)
    found = [mean_interval(rng.normal(size=count)) for _ in range(EXPERIMENTS)]
    assert_nominal(share_held([i.low for i in found], [i.high for i in found], 0.0), expected=count > 2)


@pytest.mark.parametrize("sources", COUNTS)
def test_copies_of_a_prompt_in_whole_frames(sources: int) -> None:
    """Ten prompts that are copies of a few, of which a method's own mean and the difference of two are told."""
    rng = np.random.default_rng(sources)
    copies = np.arange(10) % sources

    def returns() -> np.ndarray:
        return rng.normal(size=(TASKS, 1, sources, 1))[:, :, copies] + 0.3 * rng.normal(size=(TASKS, 1, 10, 2))

    means, differences = [], []
    for _ in range(150):
        episodes = frame({"a": returns(), "b": returns()}, {"a": sources, "b": sources})
        means.append(mean_return(episodes[episodes["method"] == "a"]))
        paired = paired_difference(episodes, "a", "b")
        assert paired.units == sources
        differences.append(paired.on_these_tasks)
    for found in (means, differences):
        share = share_held([i.low for i in found], [i.high for i in found], 0.0)
        if sources == 2:
            assert share is None
        else:  # 150 whole frames are off by 5 % twice in a thousand times; `stratified_interval` is held to 1 % above
            assert share is not None
            assert share >= 0.90


@pytest.mark.parametrize("count", COUNTS)
def test_equal_methods_are_seldom_called_different(count: int) -> None:
    """One verdict in twenty at most, whatever the number of trainings; none from two."""
    rng = np.random.default_rng(count)

    def returns() -> np.ndarray:
        return rng.normal(size=(1, count, 1, 1)) + 0.5 * rng.normal(size=(TASKS, count, 4, 2))

    verdicts = [paired_difference(frame({"a": returns(), "b": returns()}), "a", "b").verdict for _ in range(150)]
    if count == 2:
        assert set(verdicts) == {"too few trainings"}
    else:
        assert np.mean([verdict != "undecided" for verdict in verdicts]) <= 0.10


def simulated_scores(rng: np.random.Generator, count: int, per_training: bool) -> np.ndarray:
    """Return scores (count, 5) of runs that are prompts, or trainings with an effect on all tasks."""
    scores = SCORES + 0.15 * rng.normal(size=(count, TASKS))
    return scores + 0.1 * rng.normal(size=(count, 1)) if per_training else scores


@pytest.mark.parametrize("per_training", [False, True], ids=["prompts", "trainings"])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("statistic", [interquartile_mean, optimality_gap])
def test_aggregates(statistic: Callable[[np.ndarray], float], count: int, per_training: bool) -> None:
    rng = np.random.default_rng(count)
    tables = np.stack([simulated_scores(rng, count, per_training) for _ in range(20 * EXPERIMENTS)])
    truth = float(statistic(tables).mean())
    found = [aggregate(Runs(table, np.arange(count), None), statistic) for table in tables[:EXPERIMENTS]]
    assert_nominal(share_held([i.low for i in found], [i.high for i in found], truth), expected=count > 2)


@pytest.mark.parametrize("gain", [0.0, 0.7])
@pytest.mark.parametrize("per_training", [False, True], ids=["prompts", "trainings"])
@pytest.mark.parametrize("count", COUNTS)
def test_probability_of_improvement(count: int, per_training: bool, gain: float) -> None:
    rng = np.random.default_rng(count)
    effect = 0.7 if per_training else 0.0
    units = np.arange(count)

    def runs(mean: float) -> Runs:
        scores = mean + rng.normal(size=(count, TASKS)) + effect * rng.normal(size=(count, 1))
        return Runs(scores, units, None)

    found = [probability_of_improvement(runs(gain), runs(0.0)) for _ in range(EXPERIMENTS)]
    truth = float(np.mean([interval.estimate for interval in found]))
    assert_nominal(share_held([i.low for i in found], [i.high for i in found], truth), expected=count >= 5)


@pytest.mark.parametrize("threshold", [-0.7, 0.0, 0.7])
@pytest.mark.parametrize("count", COUNTS)
def test_bands_of_profiles(count: int, threshold: float) -> None:
    rng = np.random.default_rng(count)
    thresholds, lows, highs, shares = np.array([threshold]), [], [], []
    for _ in range(EXPERIMENTS):
        profile = performance_profile(Runs(rng.normal(size=(count, TASKS)), np.arange(count), None), thresholds)
        lows.append(profile.low_T[0])
        highs.append(profile.high_T[0])
        shares.append(profile.share_T[0])
    assert_nominal(share_held(lows, highs, float(np.mean(shares))), expected=count >= 10)


@pytest.mark.parametrize("effects", [(1.0, 0.3), (0.5, 0.5), (0.3, 1.0)], ids=["trainings", "both", "tasks"])
@pytest.mark.parametrize("count", COUNTS)
def test_tasks_and_trainings_cross(count: int, effects: tuple[float, float]) -> None:
    rng = np.random.default_rng(count)
    of_training, of_task = effects
    found = [
        crossed_interval(
            of_training * rng.normal(size=(count, 1))
            + of_task * rng.normal(size=(1, TASKS))
            + rng.normal(size=(count, TASKS))
        )
        for _ in range(EXPERIMENTS)
    ]
    assert_nominal(share_held([i.low for i in found], [i.high for i in found], 0.0), expected=count >= 5)
