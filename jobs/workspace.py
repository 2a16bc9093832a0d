"""What every job shares: its command line, its stages on storage and in MLflow, its progress display.

A stage is finished once, for the settings and inputs that its fingerprint is computed from. Its folder is
`OUTPUTS/EXPERIMENT/STAGE-FINGERPRINT/`; `stage.json`, written last, says that it is complete. Asked for again, a
finished stage is recognised, an interrupted one continues.
"""

import dataclasses
import hashlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import tyro
from recipes import RECIPES
from rich.console import Console

from promptdiffuser.console import Reporter, open_console, repeatedly
from promptdiffuser.errors import UserError
from promptdiffuser.experiment import Experiment
from promptdiffuser.files import writing_below
from promptdiffuser.paths import local_path
from promptdiffuser.tracking.delivery import Delivery
from promptdiffuser.tracking.journal import JOURNAL
from promptdiffuser.tracking.names import COMMAND_TAG, FAMILY_TAG, FOLDER_TAG, SEED_TAG, STAGE_TAG, USED_RUN_TAG
from promptdiffuser.tracking.store import RunLog, Tracker, prepare, resolve_uri
from promptdiffuser.tracking.system import system_metrics

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class JobOptions:
    """Command line of a job."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    outputs: Path = Path("outputs")
    """Folder below which the experiment writes everything; shared storage on a cluster of several machines."""
    dataset: str | None = None
    """Dataset (a folder, or s3:// or gs:// address) to use instead of the one that the experiment's own collect stage
    writes."""
    backbone_checkpoint: Path | None = None
    """Backbone folder to use instead of the one that the experiment's own pretrain stage writes."""

    def __post_init__(self) -> None:
        """Check that outputs and the backbone are on a filesystem of this machine."""
        local_path(self.outputs)
        if self.backbone_checkpoint is not None:
            local_path(self.backbone_checkpoint)


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

    @property
    def fingerprint(self) -> str:
        """Identify the result: 16 hexadecimal digits."""
        return fingerprint_of([self.name, self.settings])


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
        return " ".join(["python", *sys.argv])

    def folder_of(self, stage: Stage) -> Path:
        """Return where a stage writes."""
        return self.folder / f"{stage.name}-{stage.fingerprint[:8]}"

    def finished(self, stage: Stage) -> Path:
        """Return the folder of a finished stage, or raise a `UserError` with the command that makes it."""
        folder = self.folder_of(stage)
        if not (folder / "stage.json").is_file():
            raise UserError(
                f"stage {stage.name} of {self.experiment.name} is not finished; run `{stage.command}` first"
            )
        return folder

    def open(self, stage: Stage) -> RunLog:
        """Return a stage's run in MLflow, the same one each time."""
        tags = {STAGE_TAG: stage.kind, FOLDER_TAG: str(self.folder_of(stage)), **stage.tags}
        run = self.tracker.run(stage.name, stage.fingerprint, self.run_log, tags)
        self.run_log.set_tag(USED_RUN_TAG + stage.name, run.run_id)
        return run

    def run(self, stage: Stage) -> Path:
        """Run a stage to its end, unless it is finished already, and return its folder."""
        folder = self.folder_of(stage)
        if (folder / "stage.json").is_file():
            record = json.loads((folder / "stage.json").read_text())
            # A store that does not know the stage's run gets it: the stage runs again and finds its work done.
            if self.tracker.has_run(record["run"]):
                self.run_log.set_tag(USED_RUN_TAG + stage.name, record["run"])
                self.console.print(f"[green]✓[/] {stage.name:<32} done before ({record['seconds']:.0f} s then)")
                return folder
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
        record = {"fingerprint": stage.fingerprint, "settings": stage.settings, "seconds": seconds, "run": run.run_id}
        (folder / ".stage.json.writing").write_text(json.dumps(record, indent=1, default=str) + "\n")
        (folder / ".stage.json.writing").rename(folder / "stage.json")
        self.console.print(f"[green]✓[/] {stage.name:<32} {seconds:6.1f} s")
        return folder

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


def status_of(error: type[BaseException] | None) -> Literal["FINISHED", "FAILED", "KILLED"]:
    """Return the MLflow status of a run whose work ended with an error, or without one."""
    if error is None:
        return "FINISHED"
    return "KILLED" if issubclass(error, KeyboardInterrupt) else "FAILED"


def run_job(main: Callable[[Any], object], description: str, recipes: dict[str, tuple[str, Any]] | None = None) -> None:
    """Parse `RECIPE [options]` and run a job; `recipes` are (description, options) by name, default the experiments.

    Exit status: 0 when it did its work, 2 with a one-line message for what the user can repair, 130 after Ctrl-C, 143
    after SIGTERM.
    """
    with exit_status():
        if recipes is None:
            recipes = {name: (recipe.__doc__ or "", JobOptions(recipe())) for name, recipe in RECIPES.items()}
        try:
            options = tyro.extras.overridable_config_cli(recipes, description=description)
        except ValueError as error:  # fields that contradict each other are found when the whole object is made
            raise UserError(str(error)) from error
        main(options)


@contextmanager
def exit_status() -> Iterator[None]:
    """Turn what ends a job into its exit status; SIGTERM, which Slurm and Kubernetes send, ends it as Ctrl-C does."""
    ended_by = signal.SIGINT

    def terminate(number: int, frame: object) -> None:
        # Ray raises a new KeyboardInterrupt in the place of one that interrupts its calls, so the exception cannot say.
        nonlocal ended_by
        ended_by = signal.SIGTERM
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        how = "interrupted" if ended_by == signal.SIGINT else "terminated"
        print(f"{how}; the same command continues where this one stopped", file=sys.stderr)
        sys.exit(128 + ended_by)
    finally:
        signal.signal(signal.SIGTERM, before)
