"""Paired differences: what cancels, what counts as a unit, what may be said, and what cannot be paired."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from promptdiffuser.errors import UserError
from promptdiffuser.statistics.paired import adjusted, paired_difference
from tests.statistics.frames import frame


def simulated(
    seed: int, shape: tuple[int, ...], gain: Any, task: float = 0.0, training: float = 0.0, prompt: float = 0.0
) -> dict[str, np.ndarray]:
    """Return two methods that share large effects of the initial states and differ by a gain with these deviations."""
    rng = np.random.default_rng(seed)
    tasks, trainings, prompts, _ = shape
    states = 50 * rng.normal(size=(shape[0], 1, *shape[2:]))
    difference = (
        gain
        + task * rng.normal(size=(tasks, 1, 1, 1))
        + training * rng.normal(size=(1, trainings, 1, 1))
        + prompt * rng.normal(size=(tasks, trainings, prompts, 1))
        + rng.normal(size=shape)
    )
    return {"old": states + np.zeros(shape), "new": states + difference}


def test_what_the_initial_states_contribute_cancels() -> None:
    """A constant gain shows exactly under a spread a hundred times larger; the order of rows does not matter."""
    returns = simulated(0, (4, 1, 3, 2), 0.0)
    episodes = frame({"old": returns["old"], "new": returns["old"] + 5}).sample(frac=1, random_state=1)
    paired = paired_difference(episodes, "new", "old")
    assert paired.per_task.to_numpy() == pytest.approx(5)
    assert paired.on_these_tasks.estimate == pytest.approx(5)
    assert (paired.tasks_better, paired.num_tasks, paired.pairs, paired.unpaired) == (4, 4, 24, 0)
    back = paired_difference(episodes, "old", "new")
    assert back.on_these_tasks.estimate == pytest.approx(-5)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.tuples(*(st.integers(1, 4) for _ in range(4))))
def test_estimate_is_the_mean_difference(seed: int, shape: tuple[int, int, int, int]) -> None:
    """Whatever the design, both intervals are about the same mean, and hold it where they are known."""
    returns = simulated(seed, shape, 1.0, task=2.0, training=1.0, prompt=1.0)
    paired = paired_difference(frame(returns), "new", "old")
    assert paired.pairs == np.prod(shape)
    for interval in (paired.on_these_tasks, paired.on_tasks_like_these):
        assert interval.estimate == pytest.approx((returns["new"] - returns["old"]).mean())
        assert not interval.is_known or interval.low < interval.estimate < interval.high


@pytest.mark.parametrize(
    ("shape", "level", "units", "verdict"),
    [
        ((3, 4, 2, 2), "training_seed", 4, "better"),
        ((3, 2, 5, 2), "training_seed", 2, "too few trainings"),
        ((3, 1, 6, 2), "prompt_source", 6, "too few trainings"),
        ((3, 1, 1, 5), "start", 5, "too few trainings"),
        ((3, 1, 1, 1), None, 0, "too few trainings"),
    ],
)
def test_units_are_of_the_highest_level_that_varies(
    shape: tuple[int, ...], level: str | None, units: int, verdict: str
) -> None:
    """Trainings where there are several, else prompts, else initial states; below three there are no bounds."""
    paired = paired_difference(frame(simulated(0, shape, 100.0)), "new", "old")
    assert (paired.level, paired.units, paired.verdict) == (level, units, verdict)
    assert paired.on_these_tasks.is_known == (units >= 3)
    assert np.isfinite(paired.p_value) == (level == "training_seed" and units >= 3)


def test_copies_are_one_unit() -> None:
    """Five prompts used twice are five; prompts that either method has copied are linked; one start is nothing."""
    copied = frame(simulated(0, (3, 1, 10, 2), 1.0), sources={"new": 5})
    assert paired_difference(copied, "new", "old").units == 5
    both = frame(simulated(0, (3, 1, 10, 2), 1.0), sources={"new": 5, "old": 2})
    linked = paired_difference(both, "new", "old")
    assert (linked.level, linked.units) == ("prompt_source", 1), "prompts 0 and 2 share one, 0 and 5 the other"
    assert not linked.on_these_tasks.is_known
    exact = frame(simulated(0, (3, 1, 10, 2), 1.0), sources={"new": 1, "old": 1}, random_start=False)
    paired = paired_difference(exact, "new", "old")
    assert (paired.level, paired.units, paired.on_these_tasks.is_known) == (None, 0, False)


def test_over_trainings_the_interval_and_p_value_are_scipys() -> None:
    """A paired t-test of the trainings' means over tasks."""
    returns = simulated(1, (4, 6, 3, 2), 0.5, training=1.0)
    paired = paired_difference(frame(returns), "new", "old")
    old, new = (returns[name].mean(axis=(0, 2, 3)) for name in ("old", "new"))
    theirs = scipy.stats.ttest_rel(new, old)
    interval = theirs.confidence_interval(0.95)
    assert (paired.on_these_tasks.low, paired.on_these_tasks.high) == pytest.approx((interval.low, interval.high))
    assert paired.p_value == pytest.approx(theirs.pvalue)


def test_what_is_the_same_in_every_training_has_no_interval() -> None:
    """A constant difference is told, and neither called significant nor undecided."""
    returns = simulated(0, (3, 4, 2, 2), 0.0)
    paired = paired_difference(frame({"old": returns["old"], "new": returns["old"] + 5}), "new", "old")
    assert (paired.verdict, paired.on_these_tasks.is_known) == ("constant", False)
    assert paired_difference(frame({"old": returns["old"], "new": returns["old"]}), "new", "old").verdict == "equal"
    turned = frame({"old": returns["old"], "new": returns["old"][:, :, ::-1]})
    assert paired_difference(turned, "new", "old").verdict != "equal", "only the means are"


def test_p_values_are_adjusted_where_many_are_shown() -> None:
    """Of twenty equal methods over five trainings, one is called different too often unless it is adjusted."""
    alone = {}
    for seed in range(20):
        returns = simulated(seed, (4, 5, 2, 2), 0.0, training=1.0)
        alone[seed] = paired_difference(frame(returns), "new", "old")
    together = adjusted(alone)
    smallest = min(alone, key=lambda seed: alone[seed].p_value)
    assert together[smallest].p_value == pytest.approx(20 * alone[smallest].p_value)
    assert any(each.verdict != "undecided" for each in alone.values())
    assert all(each.verdict == "undecided" for each in together.values())


def test_what_cannot_be_paired_is_counted_or_refused() -> None:
    """Episodes without a partner are left out and counted; without any pair there is no difference."""
    episodes = frame(simulated(0, (3, 1, 4, 2), 1.0))
    some = episodes[(episodes["method"] == "old") | (episodes["prompt"] > 0)]
    paired = paired_difference(some, "new", "old")
    assert (paired.pairs, paired.unpaired) == (18, 6)
    with pytest.raises(UserError, match="no episodes of method 'other'"):
        paired_difference(episodes, "other", "old")
    apart = episodes[(episodes["method"] == "old") == (episodes["task"] == 0)]
    with pytest.raises(UserError, match=r"agree in task, prompt, episode, seed \(common tasks: none\); evaluate both"):
        paired_difference(apart, "new", "old")
    reseeded = episodes.assign(seed=episodes["seed"] + (episodes["method"] == "new"))
    with pytest.raises(UserError, match=r"common tasks: \[0, 1, 2\]\)"):
        paired_difference(reseeded, "new", "old")
    trainings = frame(simulated(0, (3, 2, 4, 2), 1.0))
    hole = trainings[(trainings["task"] > 0) | (trainings["training_seed"] > 0)]
    with pytest.raises(UserError, match=r"no pairs of \(training_seed, task\) \[\(0, 0\)\]"):
        paired_difference(hole, "new", "old")
