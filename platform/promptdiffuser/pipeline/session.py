"""A command at work: its MLflow runs, its console, and the datasets and models that its stages share.

A `Session` makes the stages of a graph one after the other. A finished stage is recognised, an interrupted one
continues, a damaged one is repaired. One process at a time works on a stage; others wait for it.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

import promptdiffuser
from promptdiffuser.background import repeatedly
from promptdiffuser.console import Reporter, open_console
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import Dataset, open_dataset
from promptdiffuser.errors import UserError
from promptdiffuser.experiment import Experiment
from promptdiffuser.files import locked, sha256, writing_below
from promptdiffuser.keys import fingerprint
from promptdiffuser.methods import get_method
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.pipeline.graph import Given, Stage
from promptdiffuser.pipeline.options import JobOptions
from promptdiffuser.pipeline.store import Record, StageStore, State
from promptdiffuser.plugins import plugin_files
from promptdiffuser.tasks import get_family
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
from promptdiffuser.training.model_folders import load_backbone

POLL_SECONDS = 0.5
NO_RESULTS = ("cli", "recipes", "reporting", "tracking")
"""Packages that decide no result of a stage with given settings."""


@cache
def source() -> dict[str, str]:
    """Return the commit, whether files were changed since, and the digest of all that decides results, plugins too."""
    root = Path(promptdiffuser.__file__).parent
    lines = [
        f"{path.relative_to(root)} {sha256(path)}"
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".pyc" and path.relative_to(root).parts[0] not in NO_RESULTS
    ]
    lines += [f"{path.name} {sha256(path)}" for path in plugin_files()]
    tags = provenance()
    return {
        "commit": tags.get(COMMIT_TAG, "unknown"),
        "dirty": tags.get(DIRTY_TAG, "unknown"),
        "digest": fingerprint(lines),
    }


def described(made_by: Mapping[str, str]) -> str:
    """Return a source in a few words."""
    changed = " with changes" if made_by["dirty"] == "true" else ""
    return f"commit {made_by['commit'][:12]}{changed}, digest {made_by['digest'][:8]}"


@dataclass(eq=False)
class ExperimentRun:
    """An experiment's own run in MLflow, below which its stages' runs lie.

    It is opened when the first stage is certain to start, so that commands that are refused leave none behind.
    """

    tracker: Tracker
    experiment: Experiment
    title: str
    kind: str
    """Tag of the run: experiment, sweep or benchmark."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What makes it another run besides the experiment."""
    parent: "ExperimentRun | None" = None

    def __post_init__(self) -> None:
        tags = {FAMILY_TAG: self.experiment.family, SEED_TAG: str(self.experiment.seed)}
        self.tracker = self.tracker.tagged(tags)

    @cached_property
    def log(self) -> RunLog:
        """The run."""
        # The cluster decides where an experiment runs, not what it computes.
        experiment = self.experiment.settings()
        tags = {STAGE_TAG: self.kind, COMMAND_TAG: typed_command()}
        identity = experiment | dict(self.identity)
        parent = self.parent.log if self.parent else None
        run = self.tracker.run(self.title, fingerprint([self.title, identity]), parent, tags)
        run.log_params(identity)
        run.log_json("experiment.json", json.loads(self.experiment.to_json()))
        return run

    def finish(self, error: type[BaseException] | None) -> None:
        """Close the run, if it was opened."""
        if "log" in self.__dict__:
            self.log.finish(status_of(error))


@dataclass(frozen=True)
class StageRun:
    """A stage while it works."""

    session: "Session"
    stage: Stage
    folder: Path
    log: RunLog
    tracker: Tracker
    reporter: Reporter

    def dataset(self, experiment: Experiment) -> Dataset:
        """Return the dataset that the stage reads."""
        return self.session.dataset(self.stage.inputs["dataset"], experiment)

    def product(self, name: str) -> Path:
        """Return where an input lies."""
        return self.session.product(self.stage.inputs[name])

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


class Session:
    """A command that makes stages of one experiment, sweep or benchmark; a context that delivers their logs."""

    def __init__(
        self, options: JobOptions, title: str = "", kind: str = "experiment", identity: Mapping[str, Any] | None = None
    ) -> None:
        """Open the stores of outputs and runs.

        Args:
            options: The experiment, or the base of all, and where outputs go.
            title: Name of its run, if not the experiment's.
            kind: Tag of its run: experiment, sweep or benchmark.
            identity: What makes it another run besides the experiment.

        Raises:
            UserError: The folder of the outputs cannot be written, or the MLflow store cannot be used.
        """
        _check_writable(options.outputs.resolve())
        self.options, self.console, self.experiment = options, open_console(), options.experiment
        self.folder = options.outputs.resolve() / self.experiment.name
        self.store = StageStore(self.folder)
        self.tracker = prepare(resolve_uri(), self.experiment.name, journal=self.folder / JOURNAL)
        self.own = ExperimentRun(self.tracker, self.experiment, title or self.experiment.name, kind, identity or {})
        self._delivery = Delivery(self.tracker.uri, self.folder / JOURNAL)
        self._closing = ExitStack()
        self._rerun = set(options.rerun)
        self._datasets: dict[str, Dataset] = {}
        self._backbones: dict[tuple[str, str], tuple[PromptDT, Normaliser]] = {}

    def __enter__(self) -> "Session":
        self._closing.enter_context(writing_below(self.folder))
        self._closing.enter_context(self._delivery)
        self._closing.push(lambda kind, *error: self.own.finish(kind))
        return self

    def __exit__(self, *error: Any) -> None:
        self._datasets.clear()
        self._backbones.clear()
        self._closing.__exit__(*error)

    def dataset(self, node: Stage | Given, experiment: Experiment) -> Dataset:
        """Return the opened dataset of an experiment; all of it is read, so a command does it once.

        Raises:
            UserError: It is broken, of another family, or lacks episodes that the experiment needs.
        """
        location = self.store.product(node)
        if location not in self._datasets:
            self._datasets[location] = open_dataset(location)
        check_dataset(self._datasets[location], experiment)
        return self._datasets[location]

    def backbone(self, node: Stage | Given, family: str) -> tuple[PromptDT, Normaliser]:
        """Return a backbone on the CPU, read once, so that all policies that leave it as it is share one."""
        at = self.store.product(node), family
        if at not in self._backbones:
            self._backbones[at] = load_backbone(Path(at[0]), get_family(family), torch.device("cpu"))
        return self._backbones[at]

    def product(self, node: Stage | Given) -> Path:
        """Return where the readers of a model, or of a stage, find it."""
        return Path(self.store.product(node)).resolve()

    def make(self, stages: Iterable[Stage], of: ExperimentRun | None = None) -> None:
        """Make stages in turn; each is made unless it is finished already.

        If another process is at work on one, wait for its end.

        Args:
            stages: What to make; what they read must be finished.
            of: The experiment whose run theirs lie below, if not the session's own.
        """
        for stage in stages:
            with locked(self.store.lock_of(stage), partial(self._say_waiting, stage)):
                self._make(stage, of or self.own)

    def contents(self, stage: Stage) -> dict[str, str]:
        """Return what the inputs of a stage contain.

        Raises:
            UserError: One is not finished or damaged; the message has the command that makes it.
        """
        found = {}
        for name, node in stage.inputs.items():
            if isinstance(node, Stage):
                self.require(node)
            content = self.store.content(node)
            assert content is not None
            found[name] = content
        return found

    def require(self, stage: Stage) -> Record:
        """Return the record of a finished stage, or raise a `UserError` with the command that makes it."""
        state = self.store.state(stage)
        if state.is_done:
            assert state.record is not None
            return state.record
        how = "is not finished; run `{}` first"
        if state.damaged or state.why:
            how = f"is damaged ({state.why}); run `{{}}`, which makes it again"
        raise UserError(f"stage {stage.name} of {self.experiment.name} {how.format(stage.command)}")

    def open(self, stage: Stage, of: ExperimentRun) -> RunLog:
        """Return a stage's run in MLflow, the same one each time that the same source asks for it."""
        tags = {STAGE_TAG: stage.kind, FOLDER_TAG: str(self.store.folder_of(stage)), **stage.tags}
        run = of.tracker.run(stage.name, f"{stage.key}-{source()['digest']}", of.log, tags)
        of.log.set_tag(USED_RUN_TAG + stage.name, run.run_id)
        return run

    def _make(self, stage: Stage, of: ExperimentRun) -> None:
        inputs, folder = self.contents(stage), self.store.folder_of(stage)
        if isinstance(dataset := stage.inputs.get("dataset"), Given):  # refused before anything is written
            self.dataset(dataset, of.experiment)
        if stage.name in self._rerun:
            self._rerun.remove(stage.name)
            self.store.clear(stage)
        if self._is_done(stage, of):
            return
        self.store.claim(folder, inputs)
        run = self.open(stage, of)
        run.log_params(stage.settings)
        started = time.perf_counter()
        try:
            reporter = Reporter(stage.name, self.console)
            with system_metrics(run), reporter.showing():
                stage.work(StageRun(self, stage, folder, run, of.tracker, reporter))
        except BaseException as error:
            run.finish(status_of(type(error)))
            raise
        seconds = time.perf_counter() - started
        run.log_metrics({"time/stage_s": seconds})
        run.finish()
        self.store.write(stage, inputs, seconds, run.run_id, source())
        self.console.print(f"[green]✓[/] {stage.name:<32} {seconds:6.1f} s")

    def _is_done(self, stage: Stage, of: ExperimentRun) -> bool:
        """Return whether a stage is finished, and print why or why not. Damaged outputs are deleted."""
        state = self.store.state(stage)
        if state.why:
            self._say(stage, f"is made again: {state.why}")
            self.store.discard(stage, state)
        # A store that does not know the stage's run gets it: the stage runs again and finds its work done.
        if not state.is_done or state.record is None or not of.tracker.has_run(state.record.run):
            return False
        of.log.set_tag(USED_RUN_TAG + stage.name, state.record.run)
        self.console.print(f"[green]✓[/] {stage.name:<32} done before ({state.record.seconds:.0f} s then)")
        if state.record.source["digest"] != source()["digest"]:
            self._say_other_source(stage, state)
        return True

    def _say_other_source(self, stage: Stage, state: State) -> None:
        assert state.record is not None
        made_by = described(state.record.source)
        if self.options.accept_stale:
            self.store.accept(stage, source())
            self._say(stage, f"was made by other source ({made_by}); accepted as what the present source makes")
            return
        self._say(
            stage,
            f"was made by other source ({made_by}); --rerun {stage.name} makes it again, --accept-stale takes it over",
        )

    def _say_waiting(self, stage: Stage, owner: str) -> None:
        self._say(stage, f"waits for {owner}")

    def _say(self, stage: Stage, text: str) -> None:
        self.console.print(f"[yellow]! {stage.name}[/] {text}", soft_wrap=True, highlight=False)


def check_dataset(dataset: Dataset, experiment: Experiment) -> None:
    """Check that a dataset has the episodes that an experiment needs; raises `UserError`."""
    if dataset.manifest.family != experiment.family:
        raise UserError(f"{dataset.location} holds {dataset.manifest.family}, the experiment is on {experiment.family}")
    dataset.files(dataset.family.train_tasks, experiment.quality)
    few_shot = experiment.evaluation.few_shot
    for task in (*dataset.family.validation_tasks, *dataset.family.test_tasks):
        dataset.check_few_shot(task, few_shot)
    methods = [get_method(name) for name in experiment.methods]
    for quality in dict.fromkeys(quality for method in methods for quality in method.qualities):
        for task in dataset.family.test_tasks:
            dataset.check_few_shot(task, dataclasses.replace(few_shot, quality=quality))


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); name another folder by --outputs") from error


def status_of(error: type[BaseException] | None) -> Literal["FINISHED", "FAILED", "KILLED"]:
    """Return the status of a run whose work ended with an error, or with none."""
    if error is None:
        return "FINISHED"
    return "KILLED" if issubclass(error, KeyboardInterrupt) else "FAILED"
