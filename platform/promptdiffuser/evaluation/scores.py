"""From returns of single episodes to a method's score and its interval.

Axes: J tasks, P prompts, R bootstrap resamples.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from promptdiffuser.data.manifest import TaskRecord
from promptdiffuser.seeding import numpy_generator
from promptdiffuser.tasks.references import Reference

RESAMPLES = 10_000
CONFIDENCE = 0.95
FAILURE_SCORE = 0.5
"""An episode failed if its return is closer to the random policy's than to the expert's."""


def bootstrap_interval(prompt_means: Mapping[int, NDArray[np.float64]], seed: int) -> tuple[float, float]:
    """Return the percentile interval of the mean over tasks.

    Prompts are resampled within each task, with all their episodes: the tasks are the fixed test set, a prompt is what
    a method draws at random. The same seed gives every method the same resamples.
    """
    generator = numpy_generator(seed, "bootstrap")
    if not all(len(values) for values in prompt_means.values()):
        return np.nan, np.nan  # a task without a single return has no mean
    means_RJ = [
        values[generator.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
        for values in prompt_means.values()
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.mean(means_RJ, axis=0), [tail, 1 - tail])
    return float(low), float(high)


def normalised(value: Any, random: Any, expert: Any) -> Any:
    """Return where a return lies: 0 is the random policy's, 1 the expert's; numbers, arrays or columns alike."""
    return (value - random) / (expert - random)


def normalised_scores(episodes: pd.DataFrame, references: Mapping[int, TaskRecord | Reference]) -> "pd.Series[float]":
    """Return each episode's return, normalised by the reference returns of its task."""
    random, expert = (
        episodes["task"].map(lambda task, name=name: getattr(references[task], name))
        for name in ("random_return", "expert_return")
    )
    scores: pd.Series[float] = normalised(episodes["return"], random, expert)
    return scores


def summarise_method(episodes: pd.DataFrame, references: Mapping[int, TaskRecord], seed: int) -> dict[str, Any]:
    """Summarise one method's episodes: mean over tasks of the means within each task.

    The episodes have the columns task, prompt, return, success, diverged, seconds. Normalised scores put the random
    policy of a task at 0 and the family's expert at 1. Episodes whose simulator lost the state have no return: they are
    left out of the means, counted as failed, and their number is reported.
    """
    per_task = episodes.groupby("task")["return"].mean()
    prompt_means = {
        int(task): group.groupby("prompt")["return"].mean().dropna().to_numpy()
        for task, group in episodes.groupby("task")
    }
    low, high = bootstrap_interval(prompt_means, seed)
    scores = normalised_scores(episodes, references)
    return {
        "mean": float(per_task.mean(skipna=False)),
        "ci_low": low,
        "ci_high": high,
        "normalised": float(scores.groupby(episodes["task"]).mean().mean(skipna=False)),
        "failed_share": float((~(scores >= FAILURE_SCORE)).mean()),
        "diverged": int(episodes["diverged"].sum()),
        "success": float(episodes.groupby("task")["success"].mean().mean()),
        "per_task": {str(task): float(value) for task, value in per_task.items()},
        "seconds": float(episodes["seconds"].sum()),
    }


def summarise_targets(
    episodes: pd.DataFrame, references: Mapping[int, TaskRecord], seed: int
) -> dict[str, dict[str, Any]]:
    """Return target return -> summary of one method's episodes that were asked for it."""
    return {
        f"{target:g}": summarise_method(own, references, seed)
        for target, own in episodes.groupby("target_return", sort=False)
    }
