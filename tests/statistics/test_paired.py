"""Paired differences: what cancels, what is resampled, and what cannot be paired."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptdiffuser.errors import UserError
from promptdiffuser.statistics.paired import paired_difference
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
    for interval in (paired.on_these_tasks, paired.on_tasks_like_these):
        assert (interval.estimate, interval.low, interval.high) == pytest.approx((5, 5, 5))
    assert (paired.tasks_better, paired.num_tasks, paired.pairs, paired.unpaired) == (4, 4, 24, 0)
    assert paired.settled
    back = paired_difference(episodes, "old", "new")
    assert back.on_these_tasks.estimate == pytest.approx(-5)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.tuples(*(st.integers(1, 4) for _ in range(4))))
def test_estimate_is_the_mean_difference(seed: int, shape: tuple[int, int, int, int]) -> None:
    """Whatever the design, the two intervals are about the same mean, and hold it."""
    returns = simulated(seed, shape, 1.0, task=2.0, training=1.0, prompt=1.0)
    paired = paired_difference(frame(returns), "new", "old")
    assert paired.pairs == np.prod(shape)
    for interval in (paired.on_these_tasks, paired.on_tasks_like_these):
        assert interval.estimate == pytest.approx((returns["new"] - returns["old"]).mean())
        assert interval.low - 1e-9 <= interval.estimate <= interval.high + 1e-9


def test_the_highest_random_level_is_resampled() -> None:
    """Trainings where there are several, else prompts, else episodes; one pair a task settles nothing."""
    for shape, level in (
        ((3, 4, 2, 2), "training_seed"),
        ((3, 1, 2, 2), "prompt"),
        ((3, 1, 1, 2), "episode"),
        ((3, 1, 1, 1), None),
    ):
        paired = paired_difference(frame(simulated(0, shape, 100.0)), "new", "old")
        assert paired.resampled == level
        assert paired.settled == (level is not None)


# Members of each level (task, training, prompt, episode), deviations of the gain between them, the interval checked.
COVERAGE = {
    "episodes share a prompt": ((4, 1, 12, 6), {"prompt": 2.0}, "on_these_tasks"),
    "prompts share a task": ((14, 1, 3, 2), {"task": 3.0, "prompt": 2.0}, "on_tasks_like_these"),
    "tasks share a training": ((4, 14, 2, 2), {"training": 2.0}, "on_these_tasks"),
    "tasks and trainings cross": ((12, 12, 1, 2), {"task": 2.0, "training": 2.0}, "on_tasks_like_these"),
}
FIXED_GAINS = np.array([-4.0, 0.0, 2.0, 6.0])  # of four fixed tasks, 1 on average


@pytest.mark.parametrize("name", COVERAGE)
def test_covers_the_truth(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 150 experiments the 95 % interval holds the true gain of 1 nearly that often, however spread is nested."""
    shape, deviations, interval = COVERAGE[name]
    monkeypatch.setattr("promptdiffuser.evaluation.scores.RESAMPLES", 400)
    monkeypatch.setattr("promptdiffuser.statistics.paired.RESAMPLES", 400)
    gain = FIXED_GAINS[:, None, None, None] if interval == "on_these_tasks" else 1.0
    differences = (paired_difference(frame(simulated(s, shape, gain, **deviations)), "new", "old") for s in range(150))
    held = [not getattr(difference, interval).excludes(1) for difference in differences]
    assert 0.88 <= np.mean(held) <= 0.99


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
