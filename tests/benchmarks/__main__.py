"""Run the benchmarks, those that are named or all: `python -m tests.benchmarks [NAME ...]`."""

import json
import sys
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


def show(entries: list[Value | Ratio]) -> Table:
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
    entries = [entry for name in names or BENCHMARKS for entry in BENCHMARKS[name]()]
    Console(width=160).print(show(entries))
    known = json.loads(OUTPUT.read_text()) if OUTPUT.is_file() else {}
    OUTPUT.write_text(json.dumps(known | {entry.name: asdict(entry) for entry in entries}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
