"""Runs are formed at the level that varies, and frames that hold less than they should are refused by name."""

import numpy as np
import pandas as pd
import pytest

from promptdiffuser.data.manifest import TaskRecord
from promptdiffuser.errors import UserError
from promptdiffuser.statistics.scores import (
    at_first_target,
    level_of,
    normalised,
    of_method,
    run_scores,
    without_diverged,
)
from tests.statistics.frames import frame

REFERENCES = {
    0: TaskRecord(goal=(0.0,), random_return=-100.0, expert_return=0.0),
    1: TaskRecord(goal=(1.0,), random_return=0.0, expert_return=10.0),
}


def test_scores_equal_hand_numbers() -> None:
    """Runs are means over a prompt's episodes; 0 is the random policy and 1 the expert of each task."""
    # Task, training, prompt, episode.
    returns = np.array([[[[-100.0, -50.0], [0.0, -20.0]]], [[[10.0, 10.0], [0.0, 4.0]]]])
    scores = run_scores(normalised(frame({"a": returns}), REFERENCES))
    assert scores["a"].scores_NJ == pytest.approx(np.array([[0.25, 1.0], [0.9, 0.2]]))


@pytest.mark.parametrize(
    ("shape", "level", "averaged"),
    [
        ((2, 3, 4, 5), "training_seed", (2, 3)),
        ((2, 1, 4, 5), "prompt_source", (3,)),
        ((2, 1, 1, 5), "start", ()),
        ((2, 1, 1, 1), None, ()),
    ],
)
def test_a_run_is_the_highest_level_that_varies(
    shape: tuple[int, ...], level: str | None, averaged: tuple[int, ...]
) -> None:
    """Several trainings are runs, else prompts, else episodes; the order of rows does not matter."""
    returns = np.random.default_rng(0).normal(size=shape)
    episodes = frame({"a": returns})
    expected = returns.mean(axis=averaged).reshape(2, -1).T
    assert level_of(episodes) == level
    runs = run_scores(episodes.sample(frac=1, random_state=0), "return")["a"]
    assert runs.scores_NJ == pytest.approx(expected)
    assert (runs.level, runs.num_units) == (level, len(expected))


def test_copies_belong_to_one_unit() -> None:
    """Six prompts from two sources are two units; episodes from one initial state are one."""
    returns = np.random.default_rng(0).normal(size=(2, 1, 6, 2))
    copied = run_scores(frame({"a": returns}, sources={"a": 2}), "return")["a"]
    assert copied.scores_NJ.shape == (6, 2)
    assert copied.units_N.tolist() == [0, 1, 0, 1, 0, 1]
    same = run_scores(frame({"a": returns[:, :, :1]}, random_start=False), "return")["a"]
    assert (same.level, same.num_units) == (None, 1)


def test_frames_that_lack_something_are_refused() -> None:
    """Each message names what is wrong and what to do."""
    episodes = frame({"a": np.zeros((2, 1, 3, 2)), "b": np.zeros((2, 1, 3, 2))})
    with pytest.raises(UserError, match=r"no episodes of method 'c' \(the frame has: a, b\); evaluate it"):
        of_method(episodes, "c")
    with pytest.raises(UserError, match="none, it is empty"):
        of_method(episodes[:0], "a")
    with pytest.raises(UserError, match="is empty; evaluate a method first"):
        run_scores(episodes[:0], "return")
    with pytest.raises(UserError, match=r"no column \['seed'\]"):
        of_method(episodes.drop(columns="seed"), "a")
    with pytest.raises(UserError, match=r"no column 'score'; statistics\.scores\.normalised adds"):
        run_scores(episodes)
    with pytest.raises(UserError, match=r"no reference returns of tasks \[1\]"):
        normalised(episodes, {0: REFERENCES[0]})
    with pytest.raises(UserError, match=r"method 'b' has no episodes of tasks \[1\]"):
        run_scores(episodes[(episodes["method"] == "a") | (episodes["task"] == 0)], "return")
    with pytest.raises(UserError, match=r"2 runs \(prompt\) on task 1, 3 on task 0; evaluate the missing ones"):
        run_scores(episodes[(episodes["prompt"] < 2) | (episodes["task"] == 0)], "return")
    with pytest.raises(UserError, match="has an episode twice; keep one target return"):
        of_method(pd.concat([episodes, episodes]), "a")


def test_methods_are_compared_at_the_first_target() -> None:
    """An evaluation can ask for several target returns; statistics are about one."""
    episodes = frame({"a": np.zeros((1, 1, 3, 2))})
    both = pd.concat([episodes.assign(target_return=target) for target in (5.0, 9.0)], ignore_index=True)
    assert set(at_first_target(both)["target_return"]) == {5.0}
    assert len(of_method(at_first_target(both), "a")) == 6
    assert len(at_first_target(episodes)) == 6


def test_diverged_episodes_are_refused_until_they_are_left_out() -> None:
    """Only episodes that are flagged can be left out; another return that is not a number stays an error."""
    episodes = frame({"a": np.zeros((1, 1, 3, 2))}).assign(diverged=False)
    episodes.loc[[1, 4], "return"] = np.nan
    episodes.loc[[0, 1], "diverged"] = True
    with pytest.raises(UserError, match=r"2 of 6 episodes of method 'a' have no finite return, 1 of them as the"):
        of_method(episodes, "a")
    kept = without_diverged(episodes)
    assert list(kept.index) == [0, 2, 3, 4, 5]
    with pytest.raises(UserError, match=r"1 of 5 episodes .* 0 of them"):
        of_method(kept, "a")
    assert len(of_method(kept.drop(index=4), "a")) == 4
    assert len(without_diverged(episodes.drop(columns="diverged"))) == 6
