"""The journal: what is logged lies on storage, one small file an entry, until it is delivered to the store.

Any process of an experiment adds entries, on any machine that sees the folder, and never waits for a server; the driver
delivers them (`delivery.py`). An entry appears whole, under a name that sorts after all that are there, and is deleted
when the store has it. Files instead of lines of one file: renaming is atomic where machines share a folder, appending
is not.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from promptdiffuser.files import writing

JOURNAL = "journal"
"""Name of the folder, below an experiment's."""
REFUSED = "refused"
"""Folder below it for entries that the store will never take, and for damaged ones."""

Kind = Literal["metrics", "history", "params", "tags", "dataset", "artifact", "text", "model", "status"]

_logger = logging.getLogger(__name__)
_lock = threading.Lock()
_last_number = 0


@dataclass(frozen=True)
class Entry:
    """One call of a `RunLog`."""

    run_id: str
    kind: Kind
    content: dict[str, Any]
    """JSON values; `writing.py` says which of each kind."""


def append(folder: Path, entry: Entry) -> None:
    """Add an entry after all that are in the folder, whatever their writers' clocks said.

    Raises:
        UserError: The disk is full or write-protected.
    """
    global _last_number
    with _lock:
        number = _last_number = max(time.time_ns(), _last_number + 1, _highest_number(folder) + 1)
    name = f"{number:020d}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.json"
    with writing(folder / name, tidying=False) as path:
        path.write_text(json.dumps(asdict(entry)))


def _highest_number(folder: Path) -> int:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return 0
    numbers = (name for name in names if name.endswith(".json") and name[:20].isdigit())
    return int(max(numbers, default="0")[:20])


def pending(folder: Path) -> list[Path]:
    """Return the entries that are not delivered yet, oldest first."""
    return sorted(folder.glob("*.json"))


def read(paths: list[Path]) -> Iterator[tuple[Path, Entry]]:
    """Yield the entries of the files; set damaged ones aside with an error."""
    for path in paths:
        try:
            entry = Entry(**json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            entry = None
        if entry is None or entry.kind not in get_args(Kind) or not isinstance(entry.content, dict):
            _logger.error("a journal entry is damaged and is set aside as %s", set_aside(path))
        else:
            yield path, entry


def set_aside(path: Path) -> Path:
    """Move an entry out of the way and return where to."""
    refused = path.parent / REFUSED
    refused.mkdir(exist_ok=True)
    return path.rename(refused / path.name)
