"""How two methods differ on the same episodes: same task, number of prompt and episode, and simulator's seed.

Equal seeds are equal initial states, so what the states contribute cancels in the difference of a pair. Episodes share
a prompt and prompts share a task: what is resampled is the highest level that a statement generalises over, each unit
with all that lies below it. Axes: S trainings, J tasks.
"""

from dataclasses import dataclass

import pandas as pd

from promptdiffuser.errors import UserError
from promptdiffuser.evaluation.scores import RESAMPLES
from promptdiffuser.seeding import numpy_generator
from promptdiffuser.statistics.intervals import Interval, bounds, mean_interval
from promptdiffuser.statistics.scores import Level, of_method, run_level, run_means


@dataclass(frozen=True)
class PairedDifference:
    """How much more a method gets than a baseline."""

    on_these_tasks: Interval
    """Mean over the tasks; they are the fixed test set, runs are resampled."""
    on_tasks_like_these: Interval
    """The same mean; the tasks are a random sample and resampled (and the trainings, where there are several)."""
    per_task: pd.Series
    """Mean difference by task."""
    resampled: Level | None
    """What a run is; none if there is one pair a task, and then `on_these_tasks` has no width."""
    pairs: int
    unpaired: int
    """Episodes of either method without a partner, left out."""

    @property
    def tasks_better(self) -> int:
        """Number of tasks on which the method is better."""
        return int((self.per_task > 0).sum())

    @property
    def num_tasks(self) -> int:
        """Number of tasks."""
        return len(self.per_task)

    @property
    def settled(self) -> bool:
        """Whether zero lies outside of the interval on these tasks."""
        return self.resampled is not None and self.on_these_tasks.excludes(0)


def paired_difference(
    episodes: pd.DataFrame, method: str, baseline: str, value: str = "return", seed: int = 0
) -> PairedDifference:
    """Return `method` minus `baseline`.

    The unit is the mean difference of a run on a task. Prompts are resampled within their task, as runs are by Agarwal
    et al. 2021 (arXiv:2108.13264, section 4.1; rliable pairs nothing). A training is evaluated on every task, so
    trainings are resampled with all their tasks.

    Args:
        episodes: One row an episode: method, task, prompt, episode, seed, return; training_seed if there are several.
        method: Name of the method.
        baseline: Name of the method it is compared with.
        value: Column to compare.
        seed: Address of the resamples.

    Raises:
        UserError: A method is missing, or no episodes of the two can be paired.
    """
    own, other = of_method(episodes, method), of_method(episodes, baseline)
    keys = [key for key in ("training_seed", "task", "prompt", "episode", "seed") if key in episodes]
    both = own.set_index(keys)[value] - other.set_index(keys)[value]
    difference = both.dropna().rename("difference").reset_index()
    if difference.empty:
        common = sorted(set(own["task"]) & set(other["task"]))
        raise UserError(
            f"no episodes of {method!r} and {baseline!r} agree in {', '.join(keys)} (common tasks: {common or 'none'}"
            "); evaluate both with the same protocol and seed"
        )
    level = run_level(difference)
    means = run_means(difference, level, "difference")
    per_task = means.groupby("task").mean()
    if level == "training_seed":
        fixed, sampled = _over_trainings(means.unstack("task"), seed)
    else:
        fixed = mean_interval({int(task): runs.to_numpy() for task, runs in means.groupby("task")}, seed)
        sampled = mean_interval({0: per_task.to_numpy()}, seed)
    return PairedDifference(
        on_these_tasks=fixed,
        on_tasks_like_these=sampled,
        per_task=per_task,
        resampled=level,
        pairs=len(difference),
        unpaired=len(own) + len(other) - 2 * len(difference),
    )


def _over_trainings(differences_SJ: pd.DataFrame, seed: int) -> tuple[Interval, Interval]:
    """Return the two intervals of a table that has the trainings of both methods on every task."""
    if differences_SJ.isna().any(axis=None):
        holes = [pair for pair, lacks in differences_SJ.isna().stack().items() if lacks]
        raise UserError(f"no pairs of (training_seed, task) {holes}; evaluate every training on every task")
    table = differences_SJ.to_numpy()
    fixed = mean_interval({0: table.mean(axis=1)}, seed)
    # Trainings and tasks cross, so either is drawn for itself: the pigeonhole bootstrap (Owen 2007, Annals of Applied
    # Statistics 1(2)).
    generator = numpy_generator(seed, "trainings-and-tasks")
    rows, columns = (generator.integers(size, size=(RESAMPLES, size)) for size in table.shape)
    low, high = bounds(table[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2)))
    return fixed, Interval(fixed.estimate, float(low), float(high))


def mean_return(episodes: pd.DataFrame, value: str = "return") -> Interval:
    """Return the mean over tasks of one method's returns, with the interval of whatever a run is.

    Prompts, or single episodes, are resampled within their task, trainings with all their tasks.
    """
    level = run_level(episodes)
    means = run_means(episodes, level, value)
    if level == "training_seed":
        return mean_interval({0: means.unstack("task").mean(axis=1).to_numpy()})
    return mean_interval({int(task): runs.to_numpy() for task, runs in means.groupby("task")})
