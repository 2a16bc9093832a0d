"""From the frame of single episodes to runs, which every statistic starts from.

A frame has a row per episode. What makes rows independent of each other is in three columns:

    training_seed   the training of the models; absent where there is one
    prompt_source   prompts of a method and task with equal numbers here are copies of one prompt
    start           episodes of a task with equal numbers here start in the same state

A *run* is a training, where there are several; else a prompt; else, where there is one prompt, an episode. Runs that
are copies of each other belong to one *unit*, and intervals count units.

Axes: N runs, J tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from promptdiffuser.data.manifest import TaskRecord
from promptdiffuser.errors import UserError
from promptdiffuser.tasks.references import Reference

Level = Literal["training_seed", "prompt_source", "start"]
"""The column whose values are a frame's units."""
LEVELS: tuple[Level, ...] = ("training_seed", "prompt_source", "start")
_COLUMNS = ("method", "task", "prompt", "prompt_source", "episode", "seed", "start", "return")


@dataclass(frozen=True)
class Runs:
    """The scores of one method's runs on all tasks."""

    scores_NJ: NDArray[np.float64]
    """Tasks in ascending order."""
    units_N: NDArray[np.intp]
    """Unit of each run."""
    level: Level | None
    """What the units are; None if there is nothing that varies."""

    @property
    def num_units(self) -> int:
        """Number of independent units."""
        return len(np.unique(self.units_N))


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


def normalise(value: Any, random: Any, expert: Any) -> Any:
    """Return where a return lies: 0 is the random policy's, 1 the expert's; numbers, arrays or columns alike."""
    return (value - random) / (expert - random)


def normalised_scores(episodes: pd.DataFrame, references: Mapping[int, TaskRecord | Reference]) -> "pd.Series[float]":
    """Return each episode's return, normalised by the reference returns of its task."""
    random, expert = (
        episodes["task"].map(lambda task, name=name: getattr(references[task], name))
        for name in ("random_return", "expert_return")
    )
    scores: pd.Series[float] = normalise(episodes["return"], random, expert)
    return scores


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
        raise UserError(f"the frame of episodes has no column {lacking}; evaluate again to get a frame that has it")
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


def level_of(episodes: pd.DataFrame) -> Level | None:
    """Return what the units of one method's episodes are: the first of `LEVELS` that varies within a task."""
    return next((level for level in LEVELS if _varies(episodes, level)), None)


def unit_means(episodes: pd.DataFrame, level: Level | None, value: str = "return") -> pd.DataFrame:
    """Return the mean of each unit of one method on each task, and the number of prompts (or episodes) in it.

    Every prompt of a training counts the same, and every prompt with the same source. What the units are is `level_of`
    the episodes.

    Returns:
        Indexed by task and unit, with the columns `mean` and `weight`.
    """
    if level == "training_seed":
        by_prompt = episodes.groupby(["task", "training_seed", "prompt"])[value].mean()
        return by_prompt.groupby(["task", "training_seed"]).mean().to_frame("mean").assign(weight=1)
    if level == "prompt_source":
        by_prompt = episodes.groupby(["task", "prompt_source", "prompt"])[value].mean()
    else:
        by_prompt = episodes.groupby(["task", "start", "prompt", "episode"])[value].mean()
    means = by_prompt.groupby(level=[0, 1]).agg(["mean", "size"])
    return means.rename(columns={"size": "weight"})


def fewest_units(means: pd.DataFrame, level: Level | None) -> int:
    """Return the units of the task that has the fewest, of what `unit_means` returns; 0 where nothing varies."""
    return 0 if level is None else int(means.groupby("task").size().min())


def linked(keys: list[NDArray[Any]], count: int) -> NDArray[np.intp]:
    """Return labels (count,) of rows; rows with an equal value in any of the keys (count,) have the same label."""
    from scipy.sparse import coo_array  # slow to import, and workers that train import this module
    from scipy.sparse.csgraph import connected_components

    rows, columns, offset = [np.arange(0)], [np.arange(0)], count
    for key in keys:
        codes, values = pd.factorize(key)
        rows.append(np.arange(count))
        columns.append(offset + codes)
        offset += len(values)
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_array((np.ones(len(row)), (row, column)), shape=(offset, offset))
    labels = connected_components(graph, directed=False)[1][:count]
    return np.asarray(np.unique(labels, return_inverse=True)[1], np.intp)


def run_scores(episodes: pd.DataFrame, value: str = "score") -> dict[str, Runs]:
    """Return the runs of every method.

    Args:
        episodes: One row an episode, with the column `value`.
        value: Such as `score`, which `normalised` adds, or `return`.

    Raises:
        UserError: A method lacks tasks that another has, or has not the same runs on every task.
    """
    if value not in episodes:
        raise UserError(f"the frame of episodes has no column {value!r}; statistics.scores.normalised adds `score`")
    if episodes.empty:
        raise UserError("the frame of episodes is empty; evaluate a method first")
    tasks = set(episodes["task"])
    row = next((name for name in ("training_seed", "prompt", "episode") if _varies(episodes, name)), "prompt")
    found = {}
    for method in map(str, episodes["method"].unique()):
        own = of_method(episodes, method)
        if missing := sorted(tasks - set(own["task"])):
            raise UserError(
                f"method {method!r} has no episodes of tasks {missing}; evaluate it there or leave them out"
            )
        found[method] = _runs(own, method, row, value)
    return found


def _runs(own: pd.DataFrame, method: str, row: str, value: str) -> Runs:
    parts = ["task", "training_seed", "prompt", *(["episode"] if row == "episode" else [])]
    table = own.groupby(_present(own, *parts))[value].mean().groupby(["task", row]).mean().unstack(row)
    if table.isna().any(axis=None):
        counts = table.notna().sum(axis=1)
        raise UserError(
            f"method {method!r} has {counts.min()} runs ({row}) on task {counts.idxmin()}, {counts.max()} on "
            f"task {counts.idxmax()}; evaluate the missing ones, equal numbers are needed"
        )
    level = level_of(own)
    if level is None:
        units_N = np.zeros(table.shape[1], np.intp)
    elif level == "training_seed":
        units_N = np.arange(table.shape[1])
    else:  # runs that share a unit on any task are one unit
        row_index = table.columns.get_indexer(own[row])
        of_episode = linked([row_index, own.groupby(["task", level]).ngroup().to_numpy()], len(own))
        units_N = np.zeros(table.shape[1], np.intp)
        units_N[row_index] = of_episode
    return Runs(table.to_numpy(np.float64).T, units_N, level)


def _varies(episodes: pd.DataFrame, column: str) -> bool:
    groups = _present(episodes, "method", "task")
    return column in episodes and bool((episodes.groupby(groups)[column].nunique() > 1).any())


def _present(episodes: pd.DataFrame, *columns: str) -> list[str]:
    return [column for column in columns if column in episodes]
