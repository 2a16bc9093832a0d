"""Compare runs of MLflow: what differs in configuration, in training, in returns and in cost, and how sure that is.

    promptdiffuser compare RUN_A RUN_B
    promptdiffuser compare "tags.`promptdiffuser.method` = 'prompt-diffuser' and params.seed = '0'"

A run is a whole experiment, whose methods are compared one by one, or one method of an experiment. Every run is
compared with the first; runs that differ only in the seed, the draw of the few-shot set and the start states count as
trainings of one. In a script: `promptdiffuser.reporting.compare.compare(uri, [run_a, run_b])`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro
from rich.console import Console
from rich.table import Table

from promptdiffuser.console import open_console, print_table
from promptdiffuser.paths import local_path
from promptdiffuser.reporting import page
from promptdiffuser.reporting.compare import Comparison, compare
from promptdiffuser.reporting.compare_page import write_comparison
from promptdiffuser.tracking.store import resolve_uri

_LONG = 12
"""A difference of settings with more lines than this is shown in the page, not in the terminal."""


@dataclass(frozen=True)
class Arguments:
    """Compare runs of MLflow (`MLFLOW_TRACKING_URI`, else ./mlflow.db)."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Run ids of experiments or of methods, or filter strings; the first is what the others are compared with."""
    output: Path = Path("outputs/comparison")
    """Folder for the page, CSV and Parquet."""
    force: bool = False
    """Compare runs of different datasets, physics or protocols all the same."""


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print sides, what differs, returns, costs and verdicts."""
    for side in comparison.sides:
        console.print(
            f"[bold]{side.name}[/]  {side.title}  {' '.join(run.info.run_id for run in side.runs)}", soft_wrap=True
        )
    for warning in comparison.warnings:
        console.print(f"[yellow]! {warning}[/]", soft_wrap=True)
    settings = comparison.settings
    shown = _table("What differs", settings.head(_LONG).reset_index())
    shown.caption = f"and {len(settings) - _LONG} more settings, see settings.csv" if len(settings) > _LONG else None
    for table in (shown, _table("Returns", comparison.returns), _table("Costs", comparison.costs.reset_index())):
        print_table(console, table)
    for sentence in comparison.verdicts:
        console.print(f"[bold]{sentence}[/]", soft_wrap=True)


def _table(title: str, frame: pd.DataFrame) -> Table:
    table = Table(*map(str, frame.columns), title=title, title_justify="left")
    for row in frame.itertuples(index=False):
        table.add_row(*(str(page.shown(value)) if isinstance(value, float) else str(value) for value in row))
    return table


def run(job: Arguments) -> None:
    """Compare, print and write the page."""
    output, comparison = local_path(job.output), compare(resolve_uri(), job.runs, job.force)
    path = write_comparison(comparison, resolve_uri(), output)
    print_comparison(comparison, open_console(highlight=False))
    print(f"wrote {path}")
