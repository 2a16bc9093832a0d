"""From returns of single episodes to a method's score and its interval."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from promptdiffuser.data.manifest import TaskRecord
from promptdiffuser.statistics.intervals import Interval
from promptdiffuser.statistics.paired import mean_return
from promptdiffuser.statistics.scores import fewest_units, level_of, normalise, normalised_scores, unit_means
from promptdiffuser.tasks.family import TaskFamily
from promptdiffuser.tasks.references import reference_returns

FAILURE_SCORE = 0.5
"""An episode failed if its return is closer to the random policy's than to the expert's."""

REFERENCE_POLICIES = {
    "random": "random_return",
    "zero-action": "zero_return",
    "mean-action": "mean_action_return",
    "expert": "expert_return",
}
"""Policy -> its return in a `Reference`."""
FLOORS = ("random", "zero-action", "mean-action")
"""Reference policies that ignore their observations: a method that does not beat them has not been shown to learn."""


def reference_task_returns(family: TaskFamily) -> dict[str, dict[int, float]]:
    """Return policy, one of `REFERENCE_POLICIES` -> test task -> what it gets there."""
    references = reference_returns(family)
    return {
        policy: {task: getattr(references[task], name) for task in family.test_tasks}
        for policy, name in REFERENCE_POLICIES.items()
    }


def reference_scores(family: TaskFamily) -> dict[str, dict[str, float]]:
    """Return what the reference policies get on the test tasks.

    Returns:
        Policy, one of `REFERENCE_POLICIES` -> its "mean" return and "normalised" score, each a mean over the test tasks
        like a method's.
    """
    references = reference_returns(family)
    scores = {}
    for policy, returns in reference_task_returns(family).items():
        relative = [
            normalise(value, references[task].random_return, references[task].expert_return)
            for task, value in returns.items()
        ]
        scores[policy] = {"mean": float(np.mean(list(returns.values()))), "normalised": float(np.mean(relative))}
    return scores


def learned_something(result: Mapping[str, Any], references: Mapping[str, Mapping[str, float]]) -> bool:
    """Return whether a method is better than every policy that ignores its observations.

    Args:
        result: The method's "mean" return over the test tasks. If it has an interval, its low end, "ci_low", decides;
            None is not known, and the mean decides.
        references: As `reference_scores` returns them for the family.
    """
    decisive = result["mean"] if result["ci_low"] is None else result["ci_low"]
    return bool(decisive > max(references[policy]["mean"] for policy in FLOORS))


def nothing_learned(
    results: Mapping[str, Mapping[str, Any]], references: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Return the sentence that names the methods, by their names in `results`, that do not beat every floor, if any."""
    idle = [
        method
        for method, result in results.items()
        if np.isfinite(result["mean"]) and not learned_something(result, references)
    ]
    if not idle:
        return []
    return [
        "Nothing shows that these learned anything, as they are not clearly better than a policy that ignores its "
        f"observations (the best of those gets {max(references[policy]['mean'] for policy in FLOORS):,.2f}): "
        f"{', '.join(idle)}."
    ]


def summarise_method(episodes: pd.DataFrame, references: Mapping[int, TaskRecord]) -> dict[str, Any]:
    """Summarise one method's episodes: mean over tasks of the means within each task.

    Normalised scores put the random policy of a task at 0 and the family's expert at 1. Episodes whose simulator lost
    the state have no return: they are left out of the means, counted as failed, and their number is reported.

    Args:
        episodes: One row an episode: task, prompt, prompt_source, episode, start, return, success, diverged, seconds.
        references: Task -> its reference returns.

    Returns:
        `mean` with its bounds `ci_low` and `ci_high` (None with fewer than three units), `units` (prompts that are no
        copies, or initial states, of the task with the fewest) and `unit` (what they are: a column, or None),
        `normalised`, `failed_share`, `diverged`, `success`, `per_task` and `seconds` of all episodes.
    """
    per_task = episodes.groupby("task")["return"].mean()
    returned = episodes.dropna(subset=["return"])
    interval = Interval(float("nan")) if per_task.isna().any() else mean_return(returned)
    level = level_of(returned)
    scores = normalised_scores(episodes, references)
    return {
        "mean": interval.estimate,
        "ci_low": interval.low if interval.is_known else None,
        "ci_high": interval.high if interval.is_known else None,
        "unit": level,
        "units": fewest_units(unit_means(returned, level), level),
        "normalised": float(scores.groupby(episodes["task"]).mean().mean(skipna=False)),
        "failed_share": float((~(scores >= FAILURE_SCORE)).mean()),
        "diverged": int(episodes["diverged"].sum()),
        "success": float(episodes.groupby("task")["success"].mean().mean()),
        "per_task": {str(task): float(value) for task, value in per_task.items()},
        "seconds": float(episodes["seconds"].sum()),
    }


def summarise_targets(episodes: pd.DataFrame, references: Mapping[int, TaskRecord]) -> dict[str, dict[str, Any]]:
    """Return target return -> summary of one method's episodes that were asked for it."""
    return {
        f"{target:g}": summarise_method(own, references)
        for target, own in episodes.groupby("target_return", sort=False)
    }
