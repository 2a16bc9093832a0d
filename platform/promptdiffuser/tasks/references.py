"""Reference returns of every task: of random actions, of one and the same action, and of the family's expert.

`jobs/experts.py` measures them and writes `reference_returns/FAMILY.json`; normalised scores put the random policy of a
task at 0 and its expert at 1, whatever dataset a method learned from. A policy that always takes the same action knows
nothing of a task, and still gets a good part of an expert's score where surviving or standing still is rewarded: its
references say which part of a score needs no learning.
"""

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from promptdiffuser.errors import UserError
from promptdiffuser.tasks.family import TaskFamily


@dataclass(frozen=True)
class Reference:
    """Mean returns on a task over the episodes that the file names, and the share of episodes the expert solves."""

    random_return: float
    zero_return: float
    """Of zero actions."""
    mean_action_return: float
    """Of the mean action of expert episodes of the family's training tasks."""
    expert_return: float
    expert_success: float
    """0 where the family does not say what success is."""


COLUMNS = [field.name for field in fields(Reference)]


def reference_returns(family: TaskFamily) -> dict[int, Reference]:
    """Return the references of every task of a family; raises `UserError` where none or old ones are shipped."""
    return _read(family.expert_of or family.name)


@cache
def _read(name: str) -> dict[int, Reference]:
    file = Path(str(resources.files("promptdiffuser.tasks"))) / "reference_returns" / f"{name}.json"
    if not file.is_file():
        raise UserError(f"no reference returns are shipped for {name}; `python jobs/experts.py {name}` measures them")
    return read_references(file)


def read_references(file: Path) -> dict[int, Reference]:
    """Read a file that `write_references` wrote; raises `UserError` if it lacks a reference."""
    document = json.loads(file.read_text())
    if missing := set(COLUMNS) - set(document.get("columns", ())):
        raise UserError(
            f"{file} has no {', '.join(sorted(missing))}; "
            f"`python jobs/experts.py {document['family']} --references-only` adds them"
        )
    return {int(task): Reference(**row) for task, row in rows(document).items()}


def rows(document: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return task -> column -> number of a reference file's content."""
    return {task: dict(zip(document["columns"], row, strict=True)) for task, row in document["tasks"].items()}


def write_references(file: Path, document: dict[str, Any], references: Mapping[int, Reference]) -> None:
    """Write the references of tasks below what else the document says."""
    about = {key: value for key, value in document.items() if key not in ("columns", "tasks")}
    head = json.dumps(about | {"columns": COLUMNS, "tasks": {}}, indent=1).removesuffix("{}\n}")
    # One line per task: a family can have thousands.
    lines = ",\n".join(
        f'  "{task}": {json.dumps([round(number, 4) for number in astuple(reference)])}'
        for task, reference in references.items()
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{head}{{\n{lines}\n }}\n}}\n")
