"""The folders of an experiment's stages, what their records say, and whether they are finished.

    OUTPUTS/EXPERIMENT/STAGE-KEY/       a stage; KEY is the first 8 digits of its key
        inputs.json                     what its inputs contain, written before it starts
        stage.json                      its record, written when it is finished

A stage is finished if its record has its key, its inputs are those that it was made from, and its files are as it left
them. Nothing here needs Ray or MLflow, and looking writes nothing.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptdiffuser.errors import UserError
from promptdiffuser.files import is_locked, sha256
from promptdiffuser.keys import fingerprint
from promptdiffuser.pipeline.graph import Given, Stage
from promptdiffuser.training.checkpoint import is_whole, read_manifest, write_json

RECORD = "stage.json"
INPUTS = "inputs.json"


@dataclass(frozen=True)
class Record:
    """What a finished stage leaves about itself."""

    key: str
    version: int
    settings: Any
    inputs: dict[str, str]
    """Input -> what it contained."""
    content: str
    """Identifies the result by what its readers see of it."""
    seconds: float
    run: str
    """Its run in MLflow."""
    source: dict[str, str]
    """Commit, whether files were changed since, and digest of the code that made it."""
    outputs: dict[str, dict[str, Any]]
    """File -> its size and checksum."""
    reads: list[str] = field(default_factory=list)
    """Folders of the stages that it reads, relative to the folder of the experiment."""
    parts: list[str] = field(default_factory=list)
    """Folders of its parts, likewise."""


@dataclass(frozen=True)
class State:
    """What there is of a stage."""

    record: Record | None = None
    """Of a finished stage."""
    why: str = ""
    """Why a stage that has been finished once is made again."""
    damaged: tuple[Path, ...] = ()
    """Files and checkpoints that are not as the stage left them."""
    is_begun: bool = False
    is_at_work: bool = False
    """Whether a process holds its lock."""

    @property
    def is_done(self) -> bool:
        """Whether it is finished."""
        return self.record is not None and not self.why

    @property
    def name(self) -> str:
        """The state in one word or two."""
        if self.is_at_work:
            return "at work"
        if self.is_done:
            return "done"
        if self.record is not None or self.why:
            return "to make again"
        return "interrupted" if self.is_begun else "to do"


class StageStore:
    """The stages of one experiment on storage."""

    def __init__(self, folder: Path) -> None:
        """Take the folder of the experiment, which need not exist."""
        self.folder = folder
        self._verified = set[Path]()

    def folder_of(self, stage: Stage) -> Path:
        """Return where a stage writes."""
        return self.folder / stage.folder

    def lock_of(self, stage: Stage) -> Path:
        """Return the file that is locked while a stage is at work."""
        return self.folder / f".{stage.folder}.lock"

    def product(self, node: Stage | Given) -> str:
        """Return where the readers of a node find its result."""
        return node.location if isinstance(node, Given) else str(self.folder_of(node) / node.product)

    def state(self, stage: Stage) -> State:
        """Return what there is of a stage."""
        folder = self.folder_of(stage)
        at_work, begun = is_locked(self.lock_of(stage)), (folder / INPUTS).exists()
        record = self.record(stage)
        if record is None:
            old = (folder / RECORD).exists()
            why = f"{folder / RECORD} is damaged or of an older version" if old else ""
            return State(why=why, is_begun=begun, is_at_work=at_work)
        if damaged := self._damaged(stage, record):
            return State(record, f"{damaged[0]} is missing or was changed", damaged, begun, at_work)
        for name, node in stage.inputs.items():
            if (found := self.content(node)) is not None and found != record.inputs.get(name):
                return State(record, f"its input {name} is not the one that it was made from", (), begun, at_work)
        return State(record, is_begun=begun, is_at_work=at_work)

    def record(self, stage: Stage) -> Record | None:
        """Return the record of a stage, or None where there is none that can be read.

        Raises:
            UserError: Another stage, whose key begins with the same digits, lies there.
        """
        folder = self.folder_of(stage)
        record = read_record(folder)
        if record is not None and (record.key, record.settings) != (stage.key, as_json(stage.settings)):
            raise UserError(f"{folder} holds another stage of the same name; move it or name other --outputs")
        return record

    def content(self, node: Stage | Given) -> str | None:
        """Return what identifies a node's result; None for a stage that is not finished."""
        if isinstance(node, Given):
            return node.content
        record = self.record(node)
        return None if record is None else record.content

    def claim(self, folder: Path, contents: Mapping[str, str]) -> None:
        """Make a folder ready for work on some inputs: what was made from others, or of unknown ones, is deleted."""
        path = folder / INPUTS
        try:
            found = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            found = None
        if found != contents:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_json(path, dict(contents))

    def clear(self, stage: Stage) -> None:
        """Delete a stage with its parts."""
        for folder in (stage.folder, *(part.folder for part in stage.parts)):
            shutil.rmtree(self.folder / folder, ignore_errors=True)
        self._verified.discard(self.folder_of(stage))

    def write(self, stage: Stage, inputs: Mapping[str, str], seconds: float, run: str, source: dict[str, str]) -> None:
        """Write the record of a stage that has just been finished."""
        folder = self.folder_of(stage)
        outputs = {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for output in stage.outputs
            for path in _files_of(folder / output)
        }
        if stage.content_of is not None:
            content = stage.content_of(folder)
        else:
            content = fingerprint([outputs, [read_manifest(path) for path in self._checkpoints(stage)]])
        record = Record(
            key=stage.key,
            version=stage.version,
            settings=as_json(stage.settings),
            inputs=dict(inputs),
            content=content,
            seconds=seconds,
            run=run,
            source=source,
            outputs=outputs,
            reads=[str(node.folder) for node in stage.inputs.values() if isinstance(node, Stage)],
            parts=[str(part.folder) for part in stage.parts],
        )
        write_json(folder / RECORD, vars(record))
        self._verified.add(folder)

    def accept(self, stage: Stage, source: dict[str, str]) -> None:
        """Record that a finished stage is what the present source makes."""
        path = self.folder_of(stage) / RECORD
        document = json.loads(path.read_text())
        accepted = [*document.get("accepted", []), document["source"]]
        write_json(path, document | {"source": source, "accepted": accepted})

    def discard(self, stage: Stage, state: State) -> None:
        """Delete what is wrong with a stage, so that it is made again from what is left."""
        for path in state.damaged:
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
        (self.folder_of(stage) / RECORD).unlink(missing_ok=True)

    def _checkpoints(self, stage: Stage) -> Iterator[Path]:
        yield from (self.folder_of(stage) / name for name in stage.checkpoints)
        for part in stage.parts:
            yield from (self.folder / part.folder / name for name in part.checkpoints)

    def _damaged(self, stage: Stage, record: Record) -> tuple[Path, ...]:
        """Return the files and checkpoints of a stage that are not as it left them; looks once in a process."""
        folder = self.folder_of(stage)
        if folder in self._verified:
            return ()
        damaged = [folder / name for name, of in record.outputs.items() if not _is_as_recorded(folder / name, of)]
        damaged += [path for path in self._checkpoints(stage) if not is_whole(path)]
        if not damaged:
            self._verified.add(folder)
        return tuple(damaged)


def read_record(folder: Path) -> Record | None:
    """Return the record in a folder, or None where there is none of this version of the platform."""
    try:
        document = json.loads((folder / RECORD).read_text())
        document.pop("accepted", None)
        return Record(**document)
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None


def as_json(settings: Any) -> Any:
    """Return settings as they are read back from JSON."""
    return json.loads(json.dumps(settings, default=str))


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(found for found in path.rglob("*") if found.is_file() and not found.name.startswith("."))


def _is_as_recorded(path: Path, recorded: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == recorded["bytes"] and sha256(path) == recorded["sha256"]
