"""Reference returns of every task: what uniformly random actions and the family's expert get.

`jobs/experts.py` measures them and writes `reference_returns/FAMILY.json`; normalised scores put the random policy of a
task at 0 and its expert at 1, whatever dataset a method learned from.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from promptdiffuser.errors import UserError
from promptdiffuser.tasks.family import TaskFamily


@dataclass(frozen=True)
class Reference:
    """Mean returns, and the share of episodes the expert solves, over the episodes that the file names."""

    random_return: float
    expert_return: float
    expert_success: float
    """0 where the family does not say what success is."""


def reference_returns(family: TaskFamily) -> dict[int, Reference]:
    """Return the references of every task of a family; raises `UserError` where none are shipped."""
    return _read(family.expert_of or family.name)


@cache
def _read(name: str) -> dict[int, Reference]:
    file = resources.files("promptdiffuser.tasks") / "reference_returns" / f"{name}.json"
    if not file.is_file():
        raise UserError(f"no reference returns are shipped for {name}; `python jobs/experts.py {name}` measures them")
    tasks = json.loads(file.read_text())["tasks"]
    return {int(task): Reference(*numbers) for task, numbers in tasks.items()}
