"""Variance components of nested synthetic data come back, and mean squares are scipy's."""

import numpy as np
import pytest
import scipy.stats

from promptdiffuser.errors import UserError
from promptdiffuser.statistics.variance import variance_components
from tests.statistics.frames import frame

LEVELS = ["task", "training seed", "task × training seed", "prompt", "episode"]
DEVIATIONS = {"task": 3.0, "training seed": 1.5, "task × training seed": 2.0, "prompt": 1.0, "episode": 2.5}


def simulated(rng: np.random.Generator, tasks: int, trainings: int, prompts: int, repeats: int) -> np.ndarray:
    """Return scores (task, training, prompt, episode) of the model, with the deviations above."""
    shapes = {
        "task": (tasks, 1, 1, 1),
        "training seed": (1, trainings, 1, 1),
        "task × training seed": (tasks, trainings, 1, 1),
        "prompt": (tasks, trainings, prompts, 1),
        "episode": (tasks, trainings, prompts, repeats),
    }
    return 7.0 + sum(DEVIATIONS[level] * rng.normal(size=shape) for level, shape in shapes.items())


def test_components_are_unbiased() -> None:
    """Averaged over 200 experiments, every component is the variance it was simulated with."""
    rng = np.random.default_rng(0)
    found = [
        variance_components(frame({"a": simulated(rng, 5, 4, 3, 2)}), "a", "return")["variance"] for _ in range(200)
    ]
    table = np.array(found)
    error = table.std(axis=0) / np.sqrt(len(table))
    assert list(found[0].index) == LEVELS
    assert (np.abs(table.mean(axis=0) - [DEVIATIONS[level] ** 2 for level in LEVELS]) < 3.5 * error).all()


def test_a_large_experiment_gives_the_shares() -> None:
    """With many members of every level one experiment is enough."""
    components = variance_components(frame({"a": simulated(np.random.default_rng(1), 60, 50, 4, 3)}), "a", "return")
    variances = np.array([DEVIATIONS[level] ** 2 for level in LEVELS])
    assert components["share"].to_numpy() == pytest.approx(variances / variances.sum(), abs=0.06)
    assert components["freedom"].sum() == 60 * 50 * 4 * 3 - 1


def test_mean_squares_are_those_of_a_one_way_analysis() -> None:
    """One training and one episode a prompt: the ratio of mean squares is scipy's F."""
    scores = np.random.default_rng(2).normal(size=(5, 1, 8, 1)) + np.arange(5)[:, None, None, None]
    components = variance_components(frame({"a": scores}), "a", "return")
    squares = components["mean_square"]
    assert list(components.index) == ["task", "prompt"]
    assert squares["task"] / squares["prompt"] == pytest.approx(scipy.stats.f_oneway(*scores[:, 0, :, 0]).statistic)
    assert components.loc["task", "variance"] == pytest.approx((squares["task"] - squares["prompt"]) / 8)


def test_levels_with_one_member_have_no_row() -> None:
    """Equal scores have no variance and no shares; a negative component counts as zero."""
    assert list(variance_components(frame({"a": np.zeros((3, 1, 1, 4))}), "a", "return").index) == ["task", "episode"]
    assert variance_components(frame({"a": np.zeros((1, 1, 2, 2))}), "a", "return")["share"].tolist() == [0.0, 0.0]
    scores = np.array([[[[0.0, 9.0], [9.0, 0.0]]]])  # prompts are equal, only their episodes differ
    components = variance_components(frame({"a": scores}), "a", "return")
    assert components.loc["prompt", "variance"] < 0
    assert components["share"].tolist() == [0.0, 1.0]


def test_unbalanced_designs_are_refused() -> None:
    """The message says which level has unequal numbers."""
    episodes = frame({"a": np.zeros((3, 2, 4, 2))})
    with pytest.raises(UserError, match="from 1 to 2 values of episode in each task and training_seed and prompt"):
        variance_components(episodes[1:], "a", "return")
    with pytest.raises(UserError, match="from 3 to 4 values of prompt_source in each task"):
        variance_components(episodes[2:], "a", "return")
    with pytest.raises(UserError, match="from 1 to 2 values of training_seed in each task"):
        variance_components(episodes[8:], "a", "return")
    moved = episodes.assign(training_seed=episodes["training_seed"] + 5 * (episodes["task"] == 0))
    with pytest.raises(UserError, match="not every training of method 'a' has every task"):
        variance_components(moved, "a", "return")
    with pytest.raises(UserError, match="no column 'score'"):
        variance_components(episodes, "a")
