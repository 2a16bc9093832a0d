"""What every job shares: its command line, its stages on storage and in MLflow, its progress display.

A stage is finished once, for the settings and inputs that its fingerprint is computed from. Its folder is
`OUTPUTS/EXPERIMENT/STAGE-FINGERPRINT/`; `stage.json`, written last, says that it is complete, with which source it was
made, and what its files were. Asked for again, a finished stage is recognised, an interrupted one continues, a damaged
one is repaired. One process at a time works on a stage; others wait for it.
"""

import dataclasses
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich.console import Console

import promptdiffuser
from promptdiffuser.background import repeatedly
from promptdiffuser.console import Reporter, open_console
from promptdiffuser.errors import UserError
from promptdiffuser.files import locked, sha256, writing_below
from promptdiffuser.pipeline.options import JobOptions
from promptdiffuser.tracking.delivery import Delivery
from promptdiffuser.tracking.journal import JOURNAL
from promptdiffuser.tracking.names import (
    COMMAND_TAG,
    COMMIT_TAG,
    DIRTY_TAG,
    FAMILY_TAG,
    FOLDER_TAG,
    SEED_TAG,
    STAGE_TAG,
    USED_RUN_TAG,
)
from promptdiffuser.tracking.provenance import provenance, typed_command
from promptdiffuser.tracking.store import RunLog, Tracker, prepare, resolve_uri
from promptdiffuser.tracking.system import system_metrics
from promptdiffuser.training.checkpoint import is_whole, write_json

POLL_SECONDS = 0.5
RECORD = "stage.json"
RECORDED = {"fingerprint", "settings", "seconds", "run", "source", "outputs"}


def fingerprint_of(settings: Any) -> str:
    """Return 16 hexadecimal digits that identify settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Stage:
    """One stage of an experiment."""

    name: str
    kind: str
    """collect, pretrain, optimise-prompts, train-diffuser, few-shot, evaluate or sweep: its tag in MLflow."""
    settings: dict[str, Any]
    """Everything its result depends on, with the fingerprints of what it reads."""
    work: Callable[["StageRun"], None]
    command: str
    """What makes it, for the error that misses it."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Further tags of its run, such as its method."""
    outputs: tuple[Path, ...] = ()
    """Files that it leaves, and folders of them, in its folder: kept with their checksums in stage.json."""
    checkpoints: tuple[Path, ...] = ()
    """Checkpoint folders that it leaves, in its folder or, if absolute, elsewhere: verified by their own manifests."""
    makes: tuple[Path, ...] = ()
    """Folders outside its own that hold its finished pieces of work; a rerun makes them again."""

    @property
    def fingerprint(self) -> str:
        """Identify the result: 16 hexadecimal digits."""
        return fingerprint_of([self.name, self.settings])


@cache
def source() -> dict[str, str]:
    """Return the commit, whether files were changed since, and the digest of all files that stages run or read."""
    found = hashlib.sha256()
    root = Path(promptdiffuser.__file__).parent
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            found.update(f"{path.relative_to(root)} {sha256(path)}\n".encode())
    tags = provenance()
    return {
        "commit": tags.get(COMMIT_TAG, "unknown"),
        "dirty": tags.get(DIRTY_TAG, "unknown"),
        "digest": found.hexdigest()[:16],
    }


def described(made_by: Mapping[str, str]) -> str:
    """Return a source in a few words."""
    changed = " with changes" if made_by["dirty"] == "true" else ""
    return f"commit {made_by['commit'][:12]}{changed}, digest {made_by['digest'][:8]}"


@dataclass(frozen=True)
class StageRun:
    """A stage while it works."""

    folder: Path
    run: RunLog
    tracker: Tracker
    reporter: Reporter

    def expect(self, total: int, done: int = 0) -> None:
        """Say how many pieces of work the stage has."""
        self.reporter.expect(total, done)

    def advance(self, pieces: int = 1) -> None:
        """Say that pieces are done."""
        self.reporter.advance(pieces)

    @contextmanager
    def watch_training(self, folders: list[Path]) -> Iterator[None]:
        """Show the progress that trainings in other processes leave in their folders."""

        def look() -> None:
            notes = [json.loads(path.read_text()) for f in folders if (path := f / "progress.json").is_file()]
            if notes:
                total = max(note["steps"] for note in notes) * len(folders)
                self.expect(total, sum(note["step"] for note in notes))
                self.reporter.show_losses(dict(pd.DataFrame([note.get("losses", {}) for note in notes]).mean()))

        with repeatedly(look, POLL_SECONDS):
            yield


@dataclass(eq=False)
class Workspace:
    """An experiment on its storage, with its MLflow runs; a context that delivers their logs and closes the parent."""

    options: JobOptions
    title: str = ""
    """Name of the parent run, if not the experiment's."""
    kind: str = "experiment"
    """Tag of the parent run: experiment, sweep or benchmark."""
    search: dict[str, Any] = field(default_factory=dict)
    """What makes a sweep another one besides its experiment."""
    base: "Workspace | None" = None
    """The benchmark that the experiment is one cell of: its run is the parent of this one's, and its dataset and
    backbones are adapted."""
    console: Console = field(default_factory=open_console)

    def __post_init__(self) -> None:
        _check_writable(self.options.outputs.resolve())
        self.experiment = self.options.experiment
        tags = {FAMILY_TAG: self.experiment.family, SEED_TAG: str(self.experiment.seed)}
        self.folder = self.options.outputs.resolve() / self.experiment.name
        self.tracker = prepare(resolve_uri(), self.experiment.name, tags, self.folder / JOURNAL)
        self.delivery = Delivery(self.tracker.uri, self.folder / JOURNAL)
        self._closing = ExitStack()
        self._verified = set[Path]()
        self._rerun = set(self.options.rerun)

    @cached_property
    def run_log(self) -> RunLog:
        """The parent run, opened when the first stage is certain to start, so that refused jobs leave none behind."""
        title = self.title or self.experiment.name
        # The cluster decides where an experiment runs, not what it computes.
        identity = {name: value for name, value in dataclasses.asdict(self.experiment).items() if name != "cluster"}
        tags = {STAGE_TAG: self.kind, COMMAND_TAG: self.command}
        identity |= self.search
        parent = self.base.run_log if self.base else None
        run = self.tracker.run(title, fingerprint_of([title, identity]), parent, tags)
        run.log_params(identity)
        run.log_json("experiment.json", json.loads(self.experiment.to_json()))
        return run

    def __enter__(self) -> "Workspace":
        self._closing.enter_context(writing_below(self.folder))
        self._closing.enter_context(self.delivery)
        self._closing.push(self._finish)
        return self

    def __exit__(self, *error: Any) -> None:
        self._closing.__exit__(*error)

    def _finish(self, kind: type[BaseException] | None, *error: object) -> None:
        if "run_log" in self.__dict__:
            self.run_log.finish(status_of(kind))

    @property
    def command(self) -> str:
        """The command that was typed."""
        return typed_command()

    def folder_of(self, stage: Stage) -> Path:
        """Return where a stage writes."""
        return self.folder / f"{stage.name}-{stage.fingerprint[:8]}"

    def check_rerun(self, names: Iterable[str]) -> None:
        """Check that the stages to make again are among the names of this command's stages; raises `UserError`."""
        known = list(names)
        for name in self.options.rerun:
            if name not in known:
                raise UserError(f"--rerun names {name!r}, which is no stage of this command; known: {', '.join(known)}")

    def finished(self, stage: Stage) -> Path:
        """Return the folder of a finished stage, or raise a `UserError` with the command that makes it."""
        folder, record = self.folder_of(stage), self._record(stage)
        if record is None:
            raise UserError(
                f"stage {stage.name} of {self.experiment.name} is not finished; run `{stage.command}` first"
            )
        if damaged := self._damaged(stage, record):
            raise UserError(
                f"stage {stage.name} of {self.experiment.name} is damaged ({damaged[0]} is missing or was changed); "
                f"run `{stage.command}`, which makes it again"
            )
        return folder

    def open(self, stage: Stage) -> RunLog:
        """Return a stage's run in MLflow, the same one each time that the same source asks for it."""
        tags = {STAGE_TAG: stage.kind, FOLDER_TAG: str(self.folder_of(stage)), **stage.tags}
        run = self.tracker.run(stage.name, f"{stage.fingerprint}-{source()['digest']}", self.run_log, tags)
        self.run_log.set_tag(USED_RUN_TAG + stage.name, run.run_id)
        return run

    def run(self, stage: Stage) -> Path:
        """Run a stage to its end, unless it is finished already, and return its folder.

        If another process is at work on it, wait for its end.
        """
        folder = self.folder_of(stage)
        with locked(folder.with_name(f".{folder.name}.lock"), lambda owner: self._say(stage, f"waits for {owner}")):
            self._make(stage)
        return folder

    def _make(self, stage: Stage) -> None:
        folder = self.folder_of(stage)
        if stage.name in self._rerun:
            self._rerun.remove(stage.name)
            for old in (folder, *stage.makes):
                shutil.rmtree(old, ignore_errors=True)
        if self._is_done(stage):
            return
        folder.mkdir(parents=True, exist_ok=True)
        run = self.open(stage)
        run.log_params(stage.settings)
        started = time.perf_counter()
        try:
            with self.at_work(stage.name, folder, run) as stage_run:
                stage.work(stage_run)
        except BaseException as error:
            run.finish(status_of(type(error)))
            raise
        seconds = time.perf_counter() - started
        run.log_metrics({"time/stage_s": seconds})
        run.finish()
        record = {
            "fingerprint": stage.fingerprint,
            "settings": _as_json(stage.settings),
            "seconds": seconds,
            "run": run.run_id,
            "source": source(),
            "outputs": {
                str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
                for output in stage.outputs
                for path in _files_of(folder / output)
            },
        }
        write_json(folder / RECORD, record)
        self._verified.add(folder)
        self.console.print(f"[green]✓[/] {stage.name:<32} {seconds:6.1f} s")

    def _is_done(self, stage: Stage) -> bool:
        """Return whether a stage is finished, and print why or why not. Damaged outputs are deleted."""
        folder, record = self.folder_of(stage), self._record(stage)
        if record is None:
            if (folder / RECORD).exists():
                self._say(stage, f"is made again: {folder / RECORD} is damaged or of an older version")
            return False
        if damaged := self._damaged(stage, record):
            self._say(stage, f"is made again: {damaged[0]} is missing or was changed")
            for path in damaged:
                if path.is_dir():
                    shutil.rmtree(path)
                path.unlink(missing_ok=True)
            (folder / RECORD).unlink()
            return False
        # A store that does not know the stage's run gets it: the stage runs again and finds its work done.
        if not self.tracker.has_run(record["run"]):
            return False
        self.run_log.set_tag(USED_RUN_TAG + stage.name, record["run"])
        self.console.print(f"[green]✓[/] {stage.name:<32} done before ({record['seconds']:.0f} s then)")
        if record["source"]["digest"] != source()["digest"]:
            made_by = described(record["source"])
            self._say(stage, f"was made by other source ({made_by}); --rerun {stage.name} makes it again")
        return True

    def _record(self, stage: Stage) -> dict[str, Any] | None:
        """Return the content of a stage's stage.json, or None where there is none that can be read."""
        path = self.folder_of(stage) / RECORD
        try:
            record = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(record, dict) or not record.keys() >= RECORDED:
            return None
        if (record["fingerprint"], record["settings"]) != (stage.fingerprint, _as_json(stage.settings)):
            raise UserError(f"{path.parent} holds another stage of the same name; move it or name other --outputs")
        return record

    def _damaged(self, stage: Stage, record: Mapping[str, Any]) -> list[Path]:
        """Return the files and checkpoints of a stage that are not as it left them; looks once in a process."""
        folder = self.folder_of(stage)
        if folder in self._verified:
            return []
        damaged = [folder / name for name, of in record["outputs"].items() if not _is_as_recorded(folder / name, of)]
        damaged += [folder / name for name in stage.checkpoints if not is_whole(folder / name)]
        if not damaged:
            self._verified.add(folder)
        return damaged

    def _say(self, stage: Stage, text: str) -> None:
        self.console.print(f"[yellow]! {stage.name}[/] {text}", soft_wrap=True, highlight=False)

    @contextmanager
    def at_work(self, name: str, folder: Path, run: RunLog) -> Iterator[StageRun]:
        """Show the progress of what the body does, and log what it makes of the machine."""
        reporter = Reporter(name, self.console)
        with system_metrics(run), reporter.showing():
            yield StageRun(folder, run, self.tracker, reporter)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); name another folder by --outputs") from error


def _as_json(settings: Any) -> Any:
    return json.loads(json.dumps(settings, default=str))


def _files_of(output: Path) -> list[Path]:
    if not output.is_dir():
        return [output]
    return sorted(path for path in output.rglob("*") if path.is_file() and not path.name.startswith("."))


def _is_as_recorded(path: Path, recorded: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == recorded["bytes"] and sha256(path) == recorded["sha256"]


def status_of(error: type[BaseException] | None) -> Literal["FINISHED", "FAILED", "KILLED"]:
    """Return the MLflow status of a run whose work ended with an error, or without one."""
    if error is None:
        return "FINISHED"
    return "KILLED" if issubclass(error, KeyboardInterrupt) else "FAILED"
