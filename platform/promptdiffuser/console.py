"""What a person sees of a job: consoles that fit their tables, and how far a stage is."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from promptdiffuser.background import repeatedly

WIDTH = 150
"""Columns where no terminal says how many there are, such as in the log of a Ray job."""
SECONDS_BETWEEN_LINES = 15.0
_CUT = "…"
"""What rich puts in the place of text that a column has no room for."""
_UNLIMITED = 100_000


def open_console(**options: Any) -> Console:
    """Return a console on the standard output; without a terminal it has `WIDTH` columns, or COLUMNS if that is set."""
    console = Console(**options)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH
    return console


def known(number: float, form: str) -> str:
    """Return a number, "–" for one that is not finite."""
    return f"{number:{form}}" if isfinite(number) else "–"


def with_interval(estimate: float, low: float | None, high: float | None, form: str = ".1f") -> str:
    """Return a number with the bounds of its interval; "–" stands for whatever is unknown."""
    if not isfinite(estimate):
        return "–"
    if low is None or high is None or not (isfinite(low) and isfinite(high)):
        return f"{estimate:{form}} (–)"
    return f"{estimate:{form}} ({low:{form}} to {high:{form}})"


def print_table(console: Console, table: Table) -> None:
    """Print a table, or a block of lines for each row where the console is too narrow for it: no cell is cut."""
    with console.capture() as shown:
        console.print(table)
    needed = console.measure(table, options=console.options.update_width(_UNLIMITED)).minimum
    if needed <= console.width and _CUT not in shown.get():
        console.print(table)
        return
    headings = [str(column.header) for column in table.columns]
    width = max(map(len, headings))
    for text in filter(None, (table.title, table.caption)):
        console.print(text, soft_wrap=True)
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        console.print()
        for heading, cell in zip(headings, cells, strict=True):
            console.print(f"{heading:<{width}}  {cell}", soft_wrap=True, highlight=False)


class Reporter:
    """How far a stage is: a bar on a terminal; elsewhere a line at its start and every so many seconds."""

    def __init__(self, name: str, console: Console) -> None:
        """Begin with an unknown amount of work."""
        self._name, self._console, self._started = name, console, time.monotonic()
        self._first_done = 0
        columns = (
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._bar = self._progress.add_task(name, total=None, losses="")

    @contextmanager
    def showing(self, seconds: float = SECONDS_BETWEEN_LINES) -> Iterator[None]:
        """Show the bar, or print the lines, while the body works."""
        if self._console.is_terminal:
            with self._progress:
                yield
            return
        self._print("started")
        with repeatedly(lambda: self._print(self._line()), seconds):
            yield

    def expect(self, total: int, done: int = 0) -> None:
        """Say how many pieces of work there are, and how many are done."""
        if self._task.total is None:
            self._started, self._first_done = time.monotonic(), done
        self._progress.update(self._bar, total=total, completed=done)

    def advance(self, pieces: int = 1) -> None:
        """Say that pieces are done."""
        self._progress.advance(self._bar, pieces)

    def show_losses(self, losses: Mapping[str, float]) -> None:
        """Say what the losses of a training are."""
        self._progress.update(self._bar, losses=", ".join(f"{name} {loss:.3g}" for name, loss in losses.items()))

    @property
    def _task(self) -> Task:
        return self._progress.tasks[0]

    def _print(self, text: str) -> None:
        self._console.print(f"  {self._name:<32} {text}", markup=False, highlight=False, soft_wrap=True)

    def _line(self) -> str:
        seconds, total, done = time.monotonic() - self._started, self._task.total, self._task.completed
        if total is None:
            return f"{seconds:.0f} s"
        parts = [f"{done:,.0f} of {total:,.0f}"]
        if done > self._first_done:
            rate = (done - self._first_done) / seconds
            parts += [f"{rate:.3g}/s", f"{(total - done) / rate:.0f} s left"]
        return ", ".join(filter(None, [*parts, self._task.fields["losses"]]))


class _RateColumn(ProgressColumn):
    """Pieces per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="cyan")
