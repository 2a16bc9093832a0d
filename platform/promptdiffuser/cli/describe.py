"""Say what a dataset holds: tasks, episodes, returns, and how it was made.

    python jobs/describe.py outputs/quickstart/collect-1a2b3c4d/dataset

Every file is checked against its digest first. Normalised returns put the random policy of a task at 0 and the family's
expert at 1.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from promptdiffuser.console import open_console, print_table
from promptdiffuser.data.store import Dataset, open_dataset
from promptdiffuser.errors import UserError
from promptdiffuser.paths import local_path
from promptdiffuser.reporting.datasets import Line, histograms, table


@dataclass(frozen=True)
class Describe:
    """Command line of the job."""

    dataset: Annotated[str, tyro.conf.Positional]
    """Dataset: a folder, or an s3:// or gs:// address."""
    all: bool = False
    """One line a task and quality, however many there are; without it large families show classes of tasks."""
    histograms: Path | None = None
    """Folder that receives one PNG a quality with histograms of the returns."""

    def __post_init__(self) -> None:
        """Check that the pictures go to a filesystem of this machine."""
        if self.histograms is not None:
            local_path(self.histograms)


def describe(dataset: Dataset, every_task: bool, console: Console) -> None:
    """Print what a dataset holds."""
    manifest, family = dataset.manifest, dataset.family
    lines, totals = table(manifest, family, every_task)
    shown = Table(title=f"{manifest.family}: {dataset.location}", title_justify="left", title_style="bold")
    headings = ["task", "quality", "tasks", "episodes", "steps", "return min", "mean", "max", "normalised"]
    for heading in headings + ["success"] * family.has_success:
        shown.add_column(heading, justify="left" if heading in headings[:2] else "right", no_wrap=heading != "task")
    for line in lines:
        shown.add_row(*cells(line, family.has_success))
    shown.add_section()
    for line in totals:
        shown.add_row(*cells(line, family.has_success), style="bold")
    print_table(console, shown)
    if len(lines) < len({(record.task, record.quality) for record in manifest.files.values()}):
        console.print("classes of tasks are shown; --all shows every task")
    seed = "none: imported episodes" if manifest.seed is None else str(manifest.seed)
    facts = {
        "digest": manifest.digest,
        "seed": seed,
        "tasks": f"{len(manifest.tasks)} of {len(family.tasks)}",
        "files": str(len(manifest.files)),
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }
    for name, fact in [*facts.items(), *(("command", command) for command in manifest.commands)]:
        console.print(f"[bold]{name:<9}[/]", end="")
        console.print(fact, markup=False, highlight=False, soft_wrap=True)


def cells(line: Line, with_success: bool) -> Iterable[str]:
    """Return a line of the table as text."""
    yield from (line.label, line.quality, f"{line.tasks}", f"{line.episodes:,}", f"{line.steps:,}")
    yield from (f"{value:.2f}" for value in (line.return_min, line.return_mean, line.return_max, line.normalised))
    if with_success:
        yield f"{line.success:.1%}"


def main(job: Describe) -> None:
    """Run the job."""
    dataset = open_dataset(job.dataset)
    if not dataset.manifest.files:
        raise UserError(f"{job.dataset} holds no episodes")
    console = open_console()
    describe(dataset, job.all, console)
    if job.histograms is not None:
        job.histograms.mkdir(parents=True, exist_ok=True)
        for line in table(dataset.manifest, dataset.family)[1]:
            path = job.histograms / f"returns-{line.quality}.png"
            histograms(dataset, line.quality).savefig(path, dpi=150)
            console.print(str(path), markup=False, highlight=False, soft_wrap=True)
