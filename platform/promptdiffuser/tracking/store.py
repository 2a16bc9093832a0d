"""A thin logger on `MlflowClient` that survives resumes, several processes and a lost server.

The driver calls `prepare` once and hands the resulting `Tracker`, or a `RunLog`, to its workers: both are small values
that pickle. Runs are found again by a fingerprint, so a resumed stage continues its run instead of making another one.
With a journal, logging writes a file and nothing else, and `delivery.py` brings it to the store; without one it calls
the store. The fluent API of MLflow is not used: it keeps the active run in process state, and workers share runs.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Experiment, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, ErrorCode
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import get_local_path_or_none

from promptdiffuser.errors import UserError
from promptdiffuser.files import locked
from promptdiffuser.tracking.addresses import (
    absolute,
    check_answers,
    first_line,
    for_client,
    is_sqlite,
    shown,
    sqlite_path,
)
from promptdiffuser.tracking.journal import Entry, Kind, append
from promptdiffuser.tracking.names import FINGERPRINT_TAG, PARENT_TAG
from promptdiffuser.tracking.provenance import provenance
from promptdiffuser.tracking.writing import DIGEST_LENGTH, write

_SECONDS_BETWEEN_TRIES = 5.0
_TRIES = 24
"""Of a call that fails though the store answers, as while a server's database is started again."""

_Answer = TypeVar("_Answer")
_logger = logging.getLogger(__name__)
_journaled: dict[tuple[str, str], int] = {}
"""(run, metric) -> last step of its history that this process has put into a journal."""


def resolve_uri() -> str:
    """Return the tracking URI: `MLFLOW_TRACKING_URI` if set, else the SQLite file `mlflow.db` of this folder."""
    return absolute(os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")


def connect(uri: str, create: bool = False) -> MlflowClient:
    """Return a client of a store that is known to answer, or raise a `UserError` within seconds.

    Args:
        uri: `sqlite:///...`, `http://...` or `https://...`.
        create: Make the SQLite file if there is none.
    """
    uri = absolute(uri)
    # MLflow itself retries a dead server or an unusable file for minutes, so look first.
    check_answers(uri, create)
    try:
        with _quiet("alembic", "mlflow"), _one_at_a_time(uri):
            client = client_of(uri)
            client.search_experiments(max_results=1)
    except MlflowException as error:
        raise UserError(f"MLflow store {shown(uri)} cannot be used: {first_line(error)}") from error
    return client


def read_json(uri: str, run_id: str, name: str) -> Any:
    """Return a JSON artifact of a run; raises `UserError` if the store has no such run or artifact."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            return json.loads(Path(connect(uri).download_artifacts(run_id, name, folder)).read_text())
    except (MlflowException, OSError) as error:
        raise UserError(
            f"no run {run_id!r} with an artifact {name} in {shown(uri)}; see `make ui` for run ids"
        ) from error


def prepare(uri: str, experiment: str, tags: Mapping[str, str] | None = None, journal: Path | None = None) -> "Tracker":
    """Open the store, making the store and the MLflow experiment if needed.

    The driver calls this once before any fan-out. Commands that touch a new SQLite file together wait for each other.

    Args:
        uri: The store.
        experiment: Name of the MLflow experiment.
        tags: What every run of the tracker is tagged with, besides its provenance.
        journal: Folder that the runs' logs go through; without one every call goes to the store.
    """
    all_tags = {**provenance(), **(tags or {})}
    uri = absolute(uri)
    client = connect(uri, create=True)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        found = _create_experiment(client, uri, experiment)
    elif found.lifecycle_stage != "active":
        raise UserError(
            f"MLflow experiment {experiment!r} in {shown(uri)} is deleted; "
            f"restore it with: MLFLOW_TRACKING_URI={shown(uri)} mlflow experiments restore -x {found.experiment_id}"
        )
    else:
        _check_takes_files(uri, found, is_new=False)
    return Tracker(uri, found.experiment_id, all_tags, journal)


@dataclass(frozen=True)
class Tracker:
    """An MLflow experiment in which runs are found or made."""

    uri: str
    experiment_id: str
    tags: Mapping[str, str]
    """Of every run."""
    journal: Path | None = None

    def tagged(self, tags: Mapping[str, str]) -> "Tracker":
        """Return a tracker that tags its runs with these, too."""
        return replace(self, tags={**self.tags, **tags})

    def run(self, name: str, fingerprint: str, parent: "RunLog | None", tags: Mapping[str, str]) -> "RunLog":
        """Return the run with this fingerprint (below `parent`, if given), reopened; or a new one.

        Args:
            name: Shown in MLflow's run list.
            fingerprint: Identifies the work; equal work has an equal fingerprint on every resume.
            parent: The run to nest below.
            tags: Its own tags, such as `promptdiffuser.stage`.
        """
        all_tags = {**self.tags, **tags, FINGERPRINT_TAG: fingerprint}
        if parent is not None:
            all_tags[PARENT_TAG] = parent.run_id
        run_id = _patiently(self.uri, lambda: self._find_or_create(name, all_tags))
        return RunLog(self.uri, run_id, self.journal)

    def _find_or_create(self, name: str, tags: Mapping[str, str]) -> str:
        client = client_of(self.uri)
        identity = [f"tags.`{key}` = '{tags[key]}'" for key in (FINGERPRINT_TAG, PARENT_TAG) if key in tags]
        # Deleted runs are not searched. The oldest one, should two drivers ever have raced.
        found = client.search_runs([self.experiment_id], " and ".join(identity), max_results=1, order_by=["start_time"])
        if not found:
            return str(client.create_run(self.experiment_id, tags=dict(tags), run_name=name).info.run_id)
        run_id = str(found[0].info.run_id)
        client.update_run(run_id, status="RUNNING", name=name)
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        return run_id

    def has_run(self, run_id: str) -> bool:
        """Tell whether this store knows a run, which it does not if the run was logged to another store."""
        try:
            found = _patiently(self.uri, lambda: client_of(self.uri).get_run(run_id))
        except MlflowException:
            return False
        return bool(found.info.lifecycle_stage == "active")


@dataclass(frozen=True)
class RunLog:
    """Writes to one run, from any process. Every call is safe to repeat.

    With a journal a call writes a file, whatever the store does. Without one it raises what MLflow raises.
    """

    uri: str
    run_id: str
    journal: Path | None = None

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters; nested mappings become dotted keys.

        MLflow never changes a parameter, so a value that differs from the one stored before a resume is kept as it was
        and warned about.
        """
        self._log("params", values={key: str(value) for key, value in flatten(params)})

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step; a value that is the newest already is not stored again, another takes its place."""
        self._log("metrics", points=_points(step, metrics))

    def log_history(self, entries: Sequence[Mapping[str, float]]) -> None:
        """Log the part of a history that is not stored yet.

        Each entry has its `step`; its other keys are metrics. Always pass the complete history: only steps beyond the
        last stored one of each metric are written, so a resumed training doubles nothing.
        """
        points = [point for entry in entries for point in _points(int(entry["step"]), entry)]
        if self.journal is not None:
            points = [point for point in points if point[-1] > _journaled.get((self.run_id, point[0]), -1)]
            _journaled.update({(self.run_id, key): step for key, _, _, step in points})
        if points:
            self._log("history", points=points)

    def log_dataset(self, name: str, digest: str, source: str, profile: Mapping[str, object]) -> None:
        """Record a dataset that this run reads.

        Args:
            name: Name of the dataset.
            digest: Content digest, at most 36 characters.
            source: Where it lies.
            profile: What it holds, as shown in MLflow: task and episode counts, dimensions.
        """
        if len(digest) > DIGEST_LENGTH:
            raise ValueError(f"digest of dataset {name!r} has {len(digest)} characters; MLflow keeps {DIGEST_LENGTH}")
        self._log(
            "dataset",
            name=name,
            digest=digest,
            source_type=urlsplit(source).scheme or "local",
            source=json.dumps({"uri": shown(source) if "://" in source else source}),
            profile=json.dumps(profile),
        )

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file into the run's artifacts; with a journal it is read when it is delivered."""
        self._log("artifact", path=str(path.absolute()), folder=folder)

    def log_json(self, name: str, value: object) -> None:
        """Store a value as the JSON artifact `name`."""
        self._log("text", name=name, text=json.dumps(value, indent=2))

    def log_model(self, name: str, folder: Path, alias: str) -> None:
        """Copy a trained model's folder into the run's artifacts and register it.

        Args:
            name: Of the registered model; a run adds one version to it.
            folder: Holds safetensors and JSON; nothing is pickled, and whoever loads it runs no code.
            alias: Names the newest version, as in `models:/NAME@ALIAS`.
        """
        self._log("model", name=name, folder=str(folder.absolute()), alias=alias)

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag."""
        self._log("tags", values={key: value})

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Close the run with a status."""
        self._log("status", status=status, at_ms=_now_ms())

    def _log(self, kind: Kind, **content: Any) -> None:
        entry = Entry(self.run_id, kind, content)
        if self.journal is None:
            write(client_of(self.uri), entry)
        else:
            append(self.journal, entry)


def _patiently(uri: str, call: Callable[[], _Answer]) -> _Answer:
    """Call a store that a stage cannot begin without; while it is away, wait for it."""
    failures, warned = 0, False
    while True:
        try:
            check_answers(uri)
            return call()
        except (UserError, MlflowException) as error:
            if isinstance(error, MlflowException):
                failures += 1
                if error.error_code != ErrorCode.Name(INTERNAL_ERROR) or failures == _TRIES:
                    raise
            if not warned:
                _logger.warning("%s; waiting for it", first_line(error))
            warned = True
        time.sleep(_SECONDS_BETWEEN_TRIES)


@lru_cache
def client_of(uri: str) -> MlflowClient:
    """Return this process's client of a store."""
    return MlflowClient(for_client(uri))


def _create_experiment(client: MlflowClient, uri: str, name: str) -> Experiment:
    """Create an experiment; a server chooses the artifact location itself."""
    location = (sqlite_path(uri).parent / "mlartifacts").as_uri() if is_sqlite(uri) else None
    try:
        created = client.get_experiment(client.create_experiment(name, location))
    except MlflowException as error:
        made_meanwhile = client.get_experiment_by_name(name)
        if made_meanwhile is None:
            raise UserError(f"MLflow cannot make experiment {name!r}: {first_line(error)}") from error
        return made_meanwhile
    try:
        _check_takes_files(uri, created, is_new=True)
    except UserError:
        # Its location can never be changed, so the name is left to an experiment that is made when files are taken.
        client.rename_experiment(created.experiment_id, f"{name} ({created.experiment_id}, takes no files)")
        client.delete_experiment(created.experiment_id)
        raise
    return created


def _check_takes_files(uri: str, experiment: Experiment, is_new: bool) -> None:
    """Raise a `UserError` if this process cannot write files where the experiment's runs keep theirs."""
    location = experiment.artifact_location
    try:
        _write_and_delete(uri, location)
    except Exception as error:  # every kind of storage has errors of its own
        if is_sqlite(uri):
            remedy = "make it writable, or set MLFLOW_TRACKING_URI to another store"
        else:
            remedy = (
                "start the server with `mlflow server --artifacts-destination PLACE`, so that it takes files itself"
            )
            if not is_new and not location.startswith("mlflow-artifacts:"):
                remedy += ", and give the experiment another name, as this one keeps its location"
        raise UserError(
            f"files of MLflow experiment {experiment.name!r} cannot be written to {location} ({first_line(error)}); "
            + remedy
        ) from error


def _write_and_delete(uri: str, location: str) -> None:
    """Try whether a place for artifacts takes a file; raises the errors of its storage."""
    if folder := get_local_path_or_none(location):
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    files = get_artifact_repository(location, tracking_uri=uri)
    with tempfile.TemporaryDirectory() as temporary:
        probe = Path(temporary) / "writable"
        probe.write_text("A job tried whether files can be written here.\n")
        files.log_artifact(str(probe))
    with suppress(Exception):  # some storage lets a job write and not delete
        files.delete_artifacts(probe.name)


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Let one process at a time bring a SQLite file to MLflow's schema: two migrations at once fail."""
    if not is_sqlite(uri):
        yield
        return
    path = sqlite_path(uri)
    with locked(path.with_name(f".{path.name}.lock")):
        yield


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Hide informational messages: making a store logs a line for every migration."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def flatten(params: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield nested settings as (`outer.inner`, value)."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _points(step: int, metrics: Mapping[str, float]) -> list[tuple[str, float, int, int]]:
    now_ms = _now_ms()
    return [(key, float(value), now_ms, step) for key, value in metrics.items() if key != "step"]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
