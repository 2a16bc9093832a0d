"""What outputs hold, and what of it can go."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from promptdiffuser.console import open_console, print_table
from promptdiffuser.errors import UserError
from promptdiffuser.files import is_locked
from promptdiffuser.pipeline.store import INPUTS, RECORD, read_record

KEYED = re.compile(r"(?P<name>.+)-(?P<key>[0-9a-f]{8})")
"""Name of a folder that holds a stage or a part of one."""
PARTS = ("adaptations", "evaluations")


@dataclass(frozen=True)
class List:
    """Show the stages below a folder of outputs."""

    outputs: Annotated[Path, tyro.conf.Positional] = Path("outputs")
    """Folder of the outputs."""


@dataclass(frozen=True)
class Prune:
    """Show what can be deleted below a folder of outputs; with --yes, delete it."""

    outputs: Annotated[Path, tyro.conf.Positional] = Path("outputs")
    """Folder of the outputs."""
    unused: bool = False
    """Also what is finished, if no results of an experiment and no benchmark or sweep were made from it."""
    yes: bool = False
    """Delete it."""


@dataclass(frozen=True)
class Entry:
    """A folder of an experiment that holds a stage or a part of one."""

    folder: Path
    state: str
    """done, at work, interrupted, part, or of an older version."""

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())


def show(options: List) -> None:
    """Print a row for each stage and part."""
    table = Table(title=str(options.outputs.resolve()), title_justify="left")
    for column in ("experiment", "stage", "state", "MiB", "seconds", "made", "commit"):
        table.add_column(column, justify="right" if column in ("MiB", "seconds") else "left", no_wrap=True)
    for experiment in _experiments(options.outputs):
        for entry in entries(experiment):
            record = read_record(entry.folder)
            known = ("", "", "")
            if record is not None:
                made = datetime.fromtimestamp((entry.folder / RECORD).stat().st_mtime).strftime("%Y-%m-%d %H:%M")
                known = (f"{record.seconds:.0f}", made, record.source["commit"][:12])
            name = str(entry.folder.relative_to(experiment))
            table.add_row(experiment.name, name, entry.state, f"{entry.bytes / 2**20:.1f}", *known)
    print_table(open_console(), table)


def prune(options: Prune) -> None:
    """Print what can be deleted, and delete it if asked to."""
    console, total = open_console(), 0
    for experiment in _experiments(options.outputs):
        for entry in removable(experiment, options.unused):
            total += entry.bytes
            console.print(f"{entry.bytes / 2**20:8.1f} MiB  {entry.state:<20} {entry.folder}", soft_wrap=True)
            if options.yes:
                shutil.rmtree(entry.folder)
    verb = "deleted" if options.yes else "can be deleted; --yes deletes it"
    console.print(f"{total / 2**20:8.1f} MiB {verb}")


def entries(experiment: Path) -> Iterator[Entry]:
    """Yield the stages of an experiment's folder and their parts."""
    for folder in sorted(path for path in experiment.iterdir() if path.is_dir() and KEYED.fullmatch(path.name)):
        if folder.name.startswith("results-") or (folder / "sweep.json").exists():
            continue
        if read_record(folder) is not None:
            state = "done"
        elif is_locked(experiment / f".{folder.name}.lock"):
            state = "at work"
        elif (folder / RECORD).exists():
            state = "of an older version"
        elif (folder / INPUTS).exists():
            state = "interrupted"
        else:
            continue
        yield Entry(folder, state)
    for kind in PARTS:
        yield from (Entry(folder, "part") for folder in sorted((experiment / kind).glob("*-????????")))


def removable(experiment: Path, unused: bool) -> list[Entry]:
    """Return what can be deleted: what was interrupted or is of an older version and, if asked for, what is unused."""
    found = list(entries(experiment))
    if any(entry.state == "at work" for entry in found):
        raise UserError(f"a command is at work in {experiment}; prune when it has ended")
    gone = [entry for entry in found if entry.state in ("interrupted", "of an older version")]
    if not unused:
        return gone
    used = used_by_results(experiment)
    return gone + [entry for entry in found if entry not in gone and entry.folder not in used]


def used_by_results(experiment: Path) -> set[Path]:
    """Return the folders that the results of an experiment, its benchmarks and its sweeps were made from."""
    waiting = [experiment / path.name.replace("results-", "evaluate-") for path in experiment.glob("results-????????")]
    waiting += experiment.glob("benchmark-????????")
    if any(experiment.glob("sweep-????????")):  # whose ledger does not name what it was made from
        waiting += [*experiment.glob("collect-????????"), *experiment.glob("pretrain*-????????")]
    used = set[Path]()
    while waiting:
        folder = waiting.pop()
        if folder in used:
            continue
        used.add(folder)
        if (record := read_record(folder)) is not None:
            used |= {experiment / part for part in record.parts}
            waiting += [experiment / read for read in record.reads]
    return used


def _experiments(outputs: Path) -> list[Path]:
    if not outputs.is_dir():
        raise UserError(f"{outputs} is not there; name the folder of the outputs")
    return sorted(path for path in outputs.resolve().iterdir() if path.is_dir())
