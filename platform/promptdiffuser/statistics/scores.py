"""From the frame of single episodes to the scores of runs on tasks, which every statistic starts from.

A run is what could have come out differently and is drawn anew in every resample: a training, where there are several
(column `training_seed`), else a prompt, else an episode. Axes: N runs, J tasks.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from promptdiffuser.data.manifest import TaskRecord
from promptdiffuser.errors import UserError
from promptdiffuser.evaluation.scores import normalised_scores
from promptdiffuser.tasks.references import Reference

Level = Literal["training_seed", "prompt", "episode"]
_LEVELS: tuple[Level, ...] = ("training_seed", "prompt", "episode")
_COLUMNS = ("method", "task", "prompt", "episode", "seed", "return")


def at_first_target(episodes: pd.DataFrame) -> pd.DataFrame:
    """Keep the episodes asked for the evaluation's first target return, the one that methods are compared at."""
    if "target_return" not in episodes or episodes.empty:
        return episodes
    return episodes[episodes["target_return"] == episodes["target_return"].iloc[0]]


def without_diverged(episodes: pd.DataFrame) -> pd.DataFrame:
    """Leave out the episodes that have no return because their simulator diverged (column `diverged`).

    Whoever does it has to say how many they were: a policy that breaks the simulator is not a good one.
    """
    if "diverged" not in episodes:
        return episodes
    return episodes[~episodes["diverged"].astype(bool) | np.isfinite(episodes["return"])]


def normalised(episodes: pd.DataFrame, references: Mapping[int, TaskRecord | Reference]) -> pd.DataFrame:
    """Add the column `score`: 0 is the random policy's mean return on a task, 1 the expert's.

    Raises:
        UserError: A task has no reference returns.
    """
    missing = sorted(set(episodes["task"]) - set(references))
    if missing:
        raise UserError(f"no reference returns of tasks {missing}; give those of the family they belong to")
    return episodes.assign(score=normalised_scores(episodes, references))


def of_method(episodes: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return the episodes of one method, checked.

    Raises:
        UserError: A column is missing, there are no episodes of the method, an episode is there twice, or returns are
            not numbers.
    """
    lacking = [column for column in _COLUMNS if column not in episodes]
    if lacking:
        raise UserError(f"the frame of episodes has no column {lacking}; give episodes.parquet of an evaluate run")
    own = episodes[episodes["method"] == method]
    if own.empty:
        known = ", ".join(sorted(set(episodes["method"]))) or "none, it is empty"
        raise UserError(f"no episodes of method {method!r} (the frame has: {known}); evaluate it or name another")
    if own.duplicated(_present(own, "training_seed", "task", "prompt", "episode")).any():
        raise UserError(
            f"method {method!r} has an episode twice; keep one target return (statistics.scores.at_first_target), tell "
            "trainings apart by a column training_seed"
        )
    broken = ~np.isfinite(own["return"].to_numpy(np.float64))
    if broken.any():
        diverged = int((own["diverged"].astype(bool) & broken).sum()) if "diverged" in own else 0
        raise UserError(
            f"{broken.sum()} of {len(own)} episodes of method {method!r} have no finite return, {diverged} of them as "
            "the simulator diverged; statistics.scores.without_diverged leaves those out, others need a new evaluation"
        )
    return own


def run_level(episodes: pd.DataFrame) -> Level | None:
    """Return what a run is: the highest level that varies within a task; none with one episode a task."""
    for level in _LEVELS:
        if level in episodes and (episodes.groupby("task")[level].nunique() > 1).any():
            return level
    return None


def run_means(episodes: pd.DataFrame, level: Level | None, value: str) -> pd.Series:
    """Return the mean of each run on each task, indexed by task and run; every prompt of a run counts the same."""
    by_prompt = episodes.groupby(_present(episodes, "task", "training_seed", "prompt"))[value].mean()
    if level == "episode":
        return episodes.set_index(["task", "episode"])[value].sort_index()
    return by_prompt.groupby(["task", level or "prompt"]).mean()


def run_scores(episodes: pd.DataFrame, value: str = "score") -> dict[str, NDArray[np.float64]]:
    """Return the scores (N, J) of every method, tasks in ascending order: rliable's dictionary of scores.

    Args:
        episodes: One row an episode, with the column `value`.
        value: Such as `score`, which `normalised` adds, or `return`.

    Raises:
        UserError: A method lacks tasks that another has, or has not the same number of runs on every task.
    """
    if value not in episodes:
        raise UserError(f"the frame of episodes has no column {value!r}; statistics.scores.normalised adds `score`")
    if episodes.empty:
        raise UserError("the frame of episodes is empty; evaluate a method first")
    level = run_level(episodes)
    tasks = set(episodes["task"])
    scores = {}
    for method in episodes["method"].unique():
        own = of_method(episodes, method)
        if missing := sorted(tasks - set(own["task"])):
            raise UserError(
                f"method {method!r} has no episodes of tasks {missing}; evaluate it there or leave them out"
            )
        means = run_means(own, level, value)
        counts = means.groupby("task").size()
        if counts.nunique() > 1:
            raise UserError(
                f"method {method!r} has {counts.min()} runs ({level}) on task {counts.idxmin()}, {counts.max()} on "
                f"task {counts.idxmax()}; evaluate the missing ones, equal numbers are needed"
            )
        scores[str(method)] = means.to_numpy().reshape(len(counts), -1).T
    return scores


def _present(episodes: pd.DataFrame, *columns: str) -> list[str]:
    return [column for column in columns if column in episodes]
