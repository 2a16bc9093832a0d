"""How two methods differ on the same episodes: equal task, prompt number, episode number and simulator seed.

Equal seeds are equal initial states, so their effect cancels in the difference of a pair. `paired_difference` is the
one way in which reports, comparisons, benchmarks and docs say that one method is better than another.

Axes: S trainings, J tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from promptdiffuser.errors import UserError
from promptdiffuser.statistics.intervals import (
    CONFIDENCE,
    LEAST_UNITS,
    Interval,
    crossed_interval,
    holm,
    mean_interval,
    stratified_interval,
)
from promptdiffuser.statistics.scores import Level, fewest_units, level_of, linked, of_method, unit_means

Verdict = Literal["better", "worse", "undecided", "equal", "constant", "too few trainings"]


@dataclass(frozen=True)
class PairedDifference:
    """How much more a method gets than a baseline."""

    on_these_tasks: Interval
    """Mean over the tasks, which are the fixed test set; the units are random."""
    on_tasks_like_these: Interval
    """The same mean, with the tasks a random sample (and the trainings, where there are several)."""
    per_task: pd.Series
    """Mean difference by task."""
    level: Level | None
    """What the units are; None if nothing varies, and then there is no interval."""
    units: int
    """Independent units: trainings, or prompts or initial states of the task that has the fewest."""
    trainings: int
    pairs: int
    all_equal: bool
    """Whether both methods have the same value in every pair."""
    unpaired: int
    """Episodes of either method without a partner, left out."""
    p_value: float
    """Of no difference on these tasks between trainings; NaN with fewer than three. `adjusted` corrects it where many
    differences are shown together."""

    @property
    def tasks_better(self) -> int:
        """Number of tasks on which the method is better."""
        return int((self.per_task > 0).sum())

    @property
    def num_tasks(self) -> int:
        """Number of tasks."""
        return len(self.per_task)

    @property
    def verdict(self) -> Verdict:
        """What may be said of the method: a difference needs three trainings and a p-value below 5 %.

        A difference that is the same in every training is `constant`: what does not vary has no interval.
        """
        if self.all_equal:
            return "equal"
        if self.trainings < LEAST_UNITS:
            return "too few trainings"
        if not self.on_these_tasks.is_known:
            return "constant"
        if self.p_value < 1 - CONFIDENCE:
            return "better" if self.on_these_tasks.estimate > 0 else "worse"
        return "undecided"


def paired_difference(episodes: pd.DataFrame, method: str, baseline: str, value: str = "return") -> PairedDifference:
    """Return `method` minus `baseline`.

    A unit is a training with all its tasks, where there are several trainings; else the prompts of a task that share a
    source in either method; else the episodes that share an initial state. A method with one prompt is taken as it is.

    Args:
        episodes: One row an episode, see `statistics.scores`.
        method: Name of the method.
        baseline: Name of the method it is compared with.
        value: Column to compare.

    Raises:
        UserError: A method is missing, or no episodes of the two can be paired.
    """
    own, other = of_method(episodes, method), of_method(episodes, baseline)
    keys = [key for key in ("training_seed", "task", "prompt", "episode", "seed") if key in episodes]
    columns = [*keys, value, "prompt_source", "start"]
    both = own[columns].merge(other[columns], on=keys, suffixes=("", "_of_baseline"))
    if both.empty:
        common = sorted(set(own["task"]) & set(other["task"]))
        raise UserError(
            f"no episodes of {method!r} and {baseline!r} agree in {', '.join(keys)} (common tasks: {common or 'none'}"
            "); evaluate both with the same protocol and seed"
        )
    both["difference"] = both[value] - both[f"{value}_of_baseline"]
    both["prompt_source"], has_several = _common_sources(both)
    level = level_of(both)
    if has_several and level != "training_seed":
        level = "prompt_source"  # a single unit if all are linked: initial states say nothing of prompts that vary
    means = unit_means(both, level, "difference")
    trainings = both["training_seed"].nunique() if "training_seed" in both else 1
    if level == "training_seed":
        table = means["mean"].unstack("task")
        per_task = table.mean()
        fixed, sampled, units = *_over_trainings(table), trainings
    else:
        per_task = both.groupby(["task", "prompt"])["difference"].mean().groupby("task").mean()
        fixed, units = _stratified(means), fewest_units(means, level)
        sampled = mean_interval(per_task.to_numpy())
    return PairedDifference(
        on_these_tasks=fixed,
        on_tasks_like_these=sampled,
        per_task=per_task,
        level=level,
        units=units,
        trainings=trainings,
        pairs=len(both),
        all_equal=bool((both["difference"] == 0).all()),
        unpaired=len(own) + len(other) - 2 * len(both),
        p_value=fixed.p_value() if level == "training_seed" else float("nan"),
    )


def adjusted(differences: Mapping[Any, PairedDifference]) -> dict[Any, PairedDifference]:
    """Return the differences with p-values adjusted for their number by Holm's method."""
    p_values = holm([each.p_value for each in differences.values()])
    return {key: replace(each, p_value=p) for (key, each), p in zip(differences.items(), p_values, strict=True)}


def mean_return(episodes: pd.DataFrame, value: str = "return") -> Interval:
    """Return the mean over tasks of one method's returns, with the interval of its units."""
    level = level_of(episodes)
    means = unit_means(episodes, level, value)
    if level != "training_seed":
        return _stratified(means)
    table_SJ = means["mean"].unstack("task")
    if table_SJ.isna().any(axis=None):  # a mean over other tasks would be another number
        return Interval(float("nan"))
    return mean_interval(table_SJ.mean(axis=1).to_numpy())


def _stratified(means: pd.DataFrame) -> Interval:
    by_task = dict(list(means.groupby("task")))
    return stratified_interval(
        {task: own["mean"].to_numpy() for task, own in by_task.items()},
        {task: own["weight"].to_numpy() for task, own in by_task.items()},
    )


def _common_sources(both: pd.DataFrame) -> tuple["pd.Series[int]", bool]:
    """Return the source of each pair, and whether a method has several for a task.

    Prompts of a task that share a source in either method have the same one.

    The one source of a method whose prompts are all copies is left out, as nothing of it varies.
    """
    groups = [key for key in ("training_seed", "task") if key in both]
    keys = [
        both.groupby([*groups, column]).ngroup().to_numpy()
        for column in ("prompt_source", "prompt_source_of_baseline")
        if (both.groupby(groups)[column].nunique() > 1).any()
    ]
    sources = linked(keys, len(both)) if keys else np.zeros(len(both), np.intp)
    return pd.Series(sources, index=both.index), bool(keys)


def _over_trainings(differences_SJ: pd.DataFrame) -> tuple[Interval, Interval]:
    """Return the two intervals of a table that has the trainings of both methods on every task."""
    if differences_SJ.isna().any(axis=None):
        holes = [pair for pair, lacks in differences_SJ.isna().stack().items() if lacks]
        raise UserError(
            f"no pairs of (training_seed, task) {holes}: no episodes, or none that ended; evaluate every training on "
            "every task"
        )
    table = differences_SJ.to_numpy()
    return mean_interval(table.mean(axis=1)), crossed_interval(table)
