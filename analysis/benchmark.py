"""The tables of a benchmark: returns, normalised scores, differences from a reference method, costs.

A unit is a training seed: a draw of the few-shot set with everything that was trained and drawn for it. Its score is
the mean over the test tasks, which are a fixed set. Intervals over a handful of seeds are Student's, as percentile
intervals of so few cover too little (docs/statistics.md).
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from promptdiffuser.errors import UserError
from promptdiffuser.evaluation.scores import CONFIDENCE
from promptdiffuser.statistics.intervals import Interval
from promptdiffuser.statistics.scores import at_first_target, without_diverged

CELL = ["arm", "few_shot_episodes", "method"]
COSTS = {
    "tunable_parameters": "tunable",
    "gradient_steps": "updates",
    "environment_episodes": "episodes",
    "memory_gib": "memory_gib",
    "seconds_adapt": "adapt_s",
}
"""Name in summary.json -> column; the seconds are those of all test tasks together."""


def student_interval(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> Interval:
    """Return the mean of independent values with Student's interval; without width for a single one: not known."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Interval(mean, np.nan, np.nan)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return Interval(mean, mean - half, mean + half)


def seed_returns(episodes: pd.DataFrame) -> pd.DataFrame:
    """Return the mean return of every cell and seed: mean over tasks of the means of prompts.

    Args:
        episodes: One row an episode: arm, few_shot_episodes, method, training_seed, task, prompt, episode, return.
    """
    kept = without_diverged(at_first_target(episodes))
    by_prompt = kept.groupby([*CELL, "training_seed", "task", "prompt"])["return"].mean()
    by_task = by_prompt.groupby([*CELL, "training_seed", "task"]).mean()
    return by_task.groupby([*CELL, "training_seed"]).mean().reset_index()


def by_cell(returns: pd.DataFrame) -> dict[tuple[str, int, str], pd.Series]:
    """Return cell -> returns by training seed, of what `seed_returns` returns."""
    return {cell: own.set_index("training_seed")["return"] for cell, own in returns.groupby(CELL, sort=False)}


def paired_difference(ours: pd.Series, theirs: pd.Series) -> Interval:
    """Return the mean difference of two cells' returns on the seeds that both have, with Student's interval."""
    return student_interval((ours - theirs).dropna().to_numpy())


def table(
    episodes: pd.DataFrame, costs: pd.DataFrame, reference: str, reference_arm: str | None = None
) -> pd.DataFrame:
    """Return one row an arm, size of few-shot set and method, best first within arms of equal few-shot sets.

    Differences pair equal seeds: the same few-shot episodes, prompt numbers and start states.

    Args:
        episodes: See `seed_returns`.
        costs: One row a cell and seed: `normalised` and the costs that summary.json has.
        reference: Method that differences are from, with as large a few-shot set.
        reference_arm: Arm of that method; None is each row's own.

    Raises:
        UserError: The reference has no episodes.
    """
    returns = seed_returns(episodes)
    if reference not in set(returns["method"]):
        raise UserError(f"no episodes of the reference method {reference!r}; name one of {sorted(set(returns.method))}")
    rows = []
    returns_of = by_cell(returns)
    for cell, own in returns_of.items():
        arm, size, method = cell
        of_cell = costs[(costs["arm"] == arm) & (costs["few_shot_episodes"] == size) & (costs["method"] == method)]
        own_return = student_interval(own.to_numpy())
        row = {
            "arm": arm,
            "few_shot_episodes": size,
            "method": method,
            "seeds": len(own),
            "return": own_return.estimate,
            "return_low": own_return.low,
            "return_high": own_return.high,
            "normalised": of_cell["normalised"].mean(),
            "failed_share": of_cell["failed_share"].mean(),
        }
        difference = Interval(np.nan, np.nan, np.nan)
        compared_with = (arm if reference_arm is None else reference_arm, size, reference)
        if cell != compared_with:
            difference = paired_difference(own, returns_of[compared_with])
        row |= {
            "difference": difference.estimate,
            "difference_low": difference.low,
            "difference_high": difference.high,
        }
        rows.append(row | {column: of_cell[name].mean() for name, column in COSTS.items()})
    return pd.DataFrame(rows).sort_values(["few_shot_episodes", "return"], ascending=[True, False], ignore_index=True)


def per_task(episodes: pd.DataFrame) -> pd.DataFrame:
    """Return the mean return of every cell on every task over all seeds, tasks as columns."""
    kept = without_diverged(at_first_target(episodes))
    by_prompt = kept.groupby([*CELL, "task", "training_seed", "prompt"])["return"].mean()
    return by_prompt.groupby([*CELL, "task"]).mean().unstack("task").reset_index()


def write_tables(folder: Path, reference: str, reference_arm: str | None = None) -> list[Path]:
    """Write table and per-task table of the benchmark in a folder as CSV and Parquet; return the files."""
    episodes = pd.read_parquet(folder / "episodes.parquet")
    costs = pd.DataFrame(json.loads((folder / "costs.json").read_text()))
    written = []
    for name, frame in (("table", table(episodes, costs, reference, reference_arm)), ("per_task", per_task(episodes))):
        frame.columns = frame.columns.map(str)
        for suffix, write in ((".csv", frame.to_csv), (".parquet", frame.to_parquet)):
            write(folder / f"{name}{suffix}", index=False)
            written.append(folder / f"{name}{suffix}")
    return written
