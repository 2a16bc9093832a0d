"""The tables of a benchmark: returns, normalised scores, differences from a reference method, costs.

A unit is a training seed: a draw of the few-shot set and of the start states, with everything that was trained and
drawn for it. The test tasks are a fixed set. All seeds share one backbone, so intervals say nothing of other backbones.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from promptdiffuser.errors import UserError
from promptdiffuser.reporting.evidence import columns_of
from promptdiffuser.reporting.tables import write_tables as tables_as_files
from promptdiffuser.statistics.intervals import Interval
from promptdiffuser.statistics.paired import PairedDifference, adjusted, mean_return, paired_difference
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

REFERENCE = "reference"
"""In the column of verdicts: what the others are compared with."""

NO_PAIRS = "no pairs"
"""In the same column: every episode of a task and seed diverged."""

Cell = tuple[str, int, str]
"""Arm, size of the few-shot set, method."""


def by_cell(episodes: pd.DataFrame) -> dict[Cell, pd.DataFrame]:
    """Return the episodes of every cell that have a return at the first target.

    Args:
        episodes: One row an episode: arm, few_shot_episodes and the columns of `statistics.scores`, with training_seed.
    """
    kept = without_diverged(at_first_target(episodes))
    return dict(list(kept.groupby(CELL, sort=False)))


def cell_return(episodes: pd.DataFrame) -> Interval:
    """Return the mean return of a cell over tasks and seeds; its interval is over seeds, unknown with fewer than three.

    Every prompt of a seed and task counts the same.
    """
    found = mean_return(episodes)
    return found if episodes["training_seed"].nunique() > 1 else Interval(found.estimate)


def cell_difference(own: pd.DataFrame, other: pd.DataFrame) -> PairedDifference:
    """Return one cell minus another, on equal seeds, few-shot episodes, prompt numbers and start states."""
    both = pd.concat([own.assign(method="own"), other.assign(method="other")], ignore_index=True)
    return paired_difference(both, "own", "other")


def differences(
    cells: Mapping[Cell, pd.DataFrame], reference: str, reference_arm: str | None = None
) -> dict[Cell, PairedDifference]:
    """Return every cell minus the reference method's with as large a few-shot set; p-values adjusted for all of them.

    Args:
        cells: Episodes of every cell. One without pairs on every task and seed has no difference.
        reference: Method that differences are from.
        reference_arm: Arm of that method; None is each cell's own.
    """
    found = {}
    for (arm, size, method), own in cells.items():
        compared_with = (arm if reference_arm is None else reference_arm, size, reference)
        if compared_with != (arm, size, method) and compared_with in cells:
            with suppress(UserError):  # a simulator that diverged may leave a task without pairs
                found[arm, size, method] = cell_difference(own, cells[compared_with])
    return adjusted(found)


def table(
    episodes: pd.DataFrame, costs: pd.DataFrame, reference: str, reference_arm: str | None = None
) -> pd.DataFrame:
    """Return one row an arm, size of few-shot set and method, best first within arms of equal few-shot sets.

    Args:
        episodes: See `by_cell`.
        costs: One row a cell and seed: `normalised` and the costs that summary.json has.
        reference: See `differences`.
        reference_arm: See `differences`.

    Raises:
        UserError: The reference has no episodes.
    """
    cells = by_cell(episodes)
    methods = sorted({method for _, _, method in cells})
    if reference not in methods:
        raise UserError(f"no episodes of the reference method {reference!r}; name one of {methods}")
    differing = differences(cells, reference, reference_arm)
    rows = []
    for cell, own in cells.items():
        paid = costs[costs[CELL].eq(list(cell)).all(axis=1)]
        mean, paired = cell_return(own), differing.get(cell)
        difference = Interval(np.nan) if paired is None else paired.on_these_tasks
        rows.append(
            dict(zip(CELL, cell, strict=True))
            | {
                "seeds": own["training_seed"].nunique(),
                **columns_of("return", mean),
                "normalised": paid["normalised"].mean(),
                "failed_share": paid["failed_share"].mean(),
                **columns_of("difference", difference),
                "p_value": np.nan if paired is None else paired.p_value,
                "verdict": _verdict(paired, cell[2] == reference and cell[0] == (reference_arm or cell[0])),
            }
            | {column: paid[name].mean() for name, column in COSTS.items()}
        )
    return pd.DataFrame(rows).sort_values(["few_shot_episodes", "return"], ascending=[True, False], ignore_index=True)


def _verdict(paired: PairedDifference | None, is_reference: bool) -> str:
    if is_reference:
        return REFERENCE
    return paired.verdict if paired else NO_PAIRS


def per_task(episodes: pd.DataFrame) -> pd.DataFrame:
    """Return the mean return of every cell on every task over all seeds, tasks as columns."""
    kept = without_diverged(at_first_target(episodes))
    by_prompt = kept.groupby([*CELL, "task", "training_seed", "prompt"])["return"].mean()
    return by_prompt.groupby([*CELL, "task"]).mean().unstack("task").reset_index()


def write_tables(folder: Path, reference: str, reference_arm: str | None = None) -> list[Path]:
    """Write table and per-task table of the benchmark in a folder as CSV and Parquet; return the files."""
    episodes = pd.read_parquet(folder / "episodes.parquet")
    costs = pd.DataFrame(json.loads((folder / "costs.json").read_text()))
    tables = {
        "table": table(episodes, costs, reference, reference_arm),
        "per_task": per_task(episodes).rename(columns=str),
    }
    return tables_as_files(tables, folder)
