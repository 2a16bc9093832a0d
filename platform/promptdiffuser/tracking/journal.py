"""The journal: what is logged lies on storage, one small file an entry, until it is delivered to the store.

Any process of an experiment adds entries, on any machine that sees the folder, and never waits for a server; the driver
delivers them (`delivery.py`). An entry appears whole, under a name that sorts by time, and is deleted when the store
has it. Files instead of lines of one file: renaming is atomic where machines share a folder, appending is not.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

JOURNAL = "journal"
"""Name of the folder, below an experiment's."""
REFUSED = "refused"
"""Folder below it for entries that the store will never take."""

Kind = Literal["metrics", "history", "params", "tags", "dataset", "artifact", "text", "model", "status"]

_lock = threading.Lock()
_last_ns = 0


@dataclass(frozen=True)
class Entry:
    """One call of a `RunLog`."""

    run_id: str
    kind: Kind
    content: dict[str, Any]
    """JSON values; `writing.py` says which of each kind."""


def append(folder: Path, entry: Entry) -> None:
    """Add an entry, after all that this process has added."""
    global _last_ns
    with _lock:
        _last_ns = max(time.time_ns(), _last_ns + 1)
        name = f"{_last_ns:020d}-{socket.gethostname()}-{os.getpid()}"
    temporary = folder / f".{name}.writing"
    try:
        temporary.write_text(json.dumps(asdict(entry)))
    except FileNotFoundError:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(asdict(entry)))
    temporary.rename(folder / f"{name}.json")


def pending(folder: Path) -> list[Path]:
    """Return the entries that are not delivered yet, oldest first."""
    return sorted(folder.glob("*.json"))


def read(paths: list[Path]) -> Iterator[tuple[Path, Entry]]:
    """Yield the entries of the files."""
    for path in paths:
        yield path, Entry(**json.loads(path.read_text()))


def set_aside(path: Path) -> Path:
    """Move an entry out of the way and return where to."""
    refused = path.parent / REFUSED
    refused.mkdir(exist_ok=True)
    return path.rename(refused / path.name)
