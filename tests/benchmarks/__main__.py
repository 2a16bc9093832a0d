"""Run the benchmarks, those that are named or all: `python -m tests.benchmarks [NAME ...]`."""

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks import (
    accelerator,
    collection,
    diffusion,
    evaluation,
    hot_loops,
    large_dataset,
    many_episodes,
    physics,
    quickstart,
    tracking,
    training,
)
from tests.benchmarks.entry import Ratio, Value

BENCHMARKS = {
    "quickstart": quickstart.run,
    "training": training.run,
    "accelerator": accelerator.run,
    "hot_loops": hot_loops.run,
    "physics": physics.run,
    "evaluation": evaluation.run,
    "many_episodes": many_episodes.run,
    "diffusion": diffusion.run,
    "collection": collection.run,
    "large_dataset": large_dataset.run,
    "tracking": tracking.run,
}
OUTPUT = Path("bench.json")


def show(entries: Iterable[Value | Ratio]) -> Table:
    table = Table(title="benchmarks")
    for column in ("name", "ratio or value", "ours", "other", "command"):
        table.add_column(column)
    for entry in entries:
        if isinstance(entry, Ratio):
            other = f"{entry.other:,.0f} {entry.unit} ({entry.other_is})"
            table.add_row(entry.name, f"{entry.ratio:.2f} x", f"{entry.ours:,.0f} {entry.unit}", other, entry.command)
        else:
            table.add_row(entry.name, f"{entry.value:,.2f} {entry.unit}", "", "", entry.command)
    return table


def main(names: list[str]) -> None:
    if unknown := set(names) - BENCHMARKS.keys():
        raise SystemExit(f"unknown benchmark {unknown.pop()!r}; known: {', '.join(BENCHMARKS)}")
    entries: list[Value | Ratio] = []
    for number, name in enumerate(chosen := names or list(BENCHMARKS), 1):
        print(f"{name} ({number} of {len(chosen)}) ...", flush=True)
        started = time.perf_counter()
        measured = BENCHMARKS[name]()
        save(measured)
        entries += measured
        print(f"{name}: {len(measured)} figures after {time.perf_counter() - started:.0f} s", flush=True)
    Console(width=160).print(show(entries))


def save(entries: Iterable[Value | Ratio]) -> None:
    """Add figures to the file, so that an interrupted run keeps those that it has."""
    known = json.loads(OUTPUT.read_text()) if OUTPUT.is_file() else {}
    text = json.dumps(known | {entry.name: asdict(entry) for entry in entries}, indent=1) + "\n"
    unfinished = OUTPUT.with_name(f".{OUTPUT.name}.writing")
    unfinished.write_text(text)
    unfinished.replace(OUTPUT)


if __name__ == "__main__":
    main(sys.argv[1:])
