"""A thin logger on `MlflowClient` that survives resumes, several processes and a lost server.

The driver calls `prepare` once and hands the resulting `Tracker`, or a `RunLog`, to its workers: both are small values
that pickle. Runs are found again by a fingerprint, so a resumed stage continues its run instead of making another one.
The fluent API of MLflow is not used: it keeps the active run in process state, and workers share runs.
"""

import http.client
import json
import logging
import os
import sqlite3
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from promptdiffuser.errors import UserError
from promptdiffuser.tracking.names import FINGERPRINT_TAG, PARENT_TAG
from promptdiffuser.tracking.provenance import provenance

# Limits of MLflow's stores and REST interface.
METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
PARAM_LENGTH = 6000
DIGEST_LENGTH = 36

_SQLITE = "sqlite:///"
_HEALTH_TIMEOUT_S = 5.0

_Item = TypeVar("_Item")
_logger = logging.getLogger(__name__)
_lost_runs: set[str] = set()


def resolve_uri() -> str:
    """Return the tracking URI: `MLFLOW_TRACKING_URI` if set, else the SQLite file `mlflow.db` of this folder."""
    return _absolute(os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db")


def connect(uri: str, create: bool = False) -> MlflowClient:
    """Return a client of a store that is known to answer, or raise a `UserError` within seconds.

    Args:
        uri: `sqlite:///...`, `http://...` or `https://...`.
        create: Make the SQLite file if there is none. Nothing else may be using it meanwhile.
    """
    uri = _absolute(uri)
    # MLflow itself retries a dead server or an unusable file for minutes, so look first.
    if uri.startswith(_SQLITE):
        _check_sqlite(uri, create)
    elif uri.startswith(("http://", "https://")):
        _check_server(uri)
    else:
        raise UserError(
            f"MLflow store {uri} is not supported; set MLFLOW_TRACKING_URI to sqlite:///PATH/mlflow.db or http://HOST:PORT"
        )
    try:
        with _quiet("alembic", "mlflow"):
            client = _client(uri)
            client.search_experiments(max_results=1)
    except MlflowException as error:
        raise UserError(f"MLflow store {uri} cannot be used: {_first_line(error)}") from error
    return client


def read_json(uri: str, run_id: str, name: str) -> Any:
    """Return a JSON artifact of a run; raises `UserError` if the store has no such run or artifact."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            return json.loads(Path(connect(uri).download_artifacts(run_id, name, folder)).read_text())
    except (MlflowException, OSError) as error:
        raise UserError(f"no run {run_id!r} with an artifact {name} in {uri}; see `make ui` for run ids") from error


def prepare(uri: str, experiment: str, tags: Mapping[str, str] | None = None) -> "Tracker":
    """Open the store, making the store and the MLflow experiment if needed.

    The driver calls this once before any fan-out: several processes that touch a new SQLite file together fail.

    Args:
        uri: The store.
        experiment: Name of the MLflow experiment.
        tags: What every run of the tracker is tagged with, besides its provenance.
    """
    all_tags = {**provenance(), **(tags or {})}
    uri = _absolute(uri)
    client = connect(uri, create=True)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return Tracker(uri, _create_experiment(client, uri, experiment), all_tags)
    if found.lifecycle_stage != "active":
        raise UserError(
            f"MLflow experiment {experiment!r} in {uri} is deleted; "
            f"restore it with: MLFLOW_TRACKING_URI={uri} mlflow experiments restore -x {found.experiment_id}"
        )
    return Tracker(uri, found.experiment_id, all_tags)


@dataclass(frozen=True)
class Tracker:
    """An MLflow experiment in which runs are found or made."""

    uri: str
    experiment_id: str
    tags: Mapping[str, str]
    """Of every run."""

    def run(self, name: str, fingerprint: str, parent: "RunLog | None", tags: Mapping[str, str]) -> "RunLog":
        """Return the run with this fingerprint (below `parent`, if given), reopened; or a new one.

        Args:
            name: Shown in MLflow's run list.
            fingerprint: Identifies the work; equal work has an equal fingerprint on every resume.
            parent: The run to nest below.
            tags: Its own tags, such as `promptdiffuser.stage`.
        """
        client = _client(self.uri)
        all_tags = {**self.tags, **tags, FINGERPRINT_TAG: fingerprint}
        if parent is not None:
            all_tags[PARENT_TAG] = parent.run_id
        identity = [f"tags.`{key}` = '{all_tags[key]}'" for key in (FINGERPRINT_TAG, PARENT_TAG) if key in all_tags]
        # Deleted runs are not searched. The oldest one, should two drivers ever have raced.
        found = client.search_runs([self.experiment_id], " and ".join(identity), max_results=1, order_by=["start_time"])
        if not found:
            made = client.create_run(self.experiment_id, tags=all_tags, run_name=name)
            return RunLog(self.uri, made.info.run_id)
        run_id = found[0].info.run_id
        client.update_run(run_id, status="RUNNING", name=name)
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in all_tags.items()])
        return RunLog(self.uri, run_id)

    def has_run(self, run_id: str) -> bool:
        """Tell whether this store knows a run, which it does not if the run was logged to another store."""
        try:
            return _client(self.uri).get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException:
            return False


@dataclass(frozen=True)
class RunLog:
    """Writes to one run, from any process. Every call is safe to repeat."""

    uri: str
    run_id: str

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters; nested mappings become dotted keys.

        MLflow never changes a parameter, so a value that differs from the one stored before a resume is kept as it was
        and warned about.
        """
        client = _client(self.uri)
        stored = client.get_run(self.run_id).data.params
        new = []
        for key, value in flatten(params):
            text = _shorten(key, str(value))
            if key not in stored:
                new.append(Param(key, text))
            elif stored[key] != text:
                _logger.warning("MLflow run %s keeps %s=%s (now %s)", self.run_id, key, stored[key], text)
        for batch in _batches(new, PARAMS_PER_BATCH):
            client.log_batch(self.run_id, params=batch)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step. A lost server is warned about once and never raises: training goes on."""
        with self._tolerate_lost_server():
            self._write(_points(step, metrics))

    def log_history(self, entries: Sequence[Mapping[str, float]]) -> None:
        """Log the part of a history that is not stored yet.

        Each entry has its `step`; its other keys are metrics. Always pass the complete history: only steps beyond the
        last stored one of each metric are written, so nothing is doubled after a resume and what a lost server missed
        is made up for by the next call.
        """
        with self._tolerate_lost_server():
            # The store keeps the newest point of every metric, with its step: one call, however long the history.
            latest = _client(self.uri).get_run(self.run_id).data.to_proto().metrics
            last_step = {metric.key: metric.step for metric in latest}
            points = [point for entry in entries for point in _points(int(entry["step"]), entry)]
            self._write([point for point in points if point.step > last_step.get(point.key, -1)])

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
        dataset = Dataset(
            name, digest, source_type="local", source=json.dumps({"uri": source}), profile=json.dumps(profile)
        )
        _client(self.uri).log_inputs(self.run_id, datasets=[DatasetInput(dataset)])

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file into the run's artifacts."""
        _client(self.uri).log_artifact(self.run_id, str(path), folder or None)

    def log_json(self, name: str, value: object) -> None:
        """Store a value as the JSON artifact `name`."""
        _client(self.uri).log_text(self.run_id, json.dumps(value, indent=2), name)

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag."""
        _client(self.uri).set_tag(self.run_id, key, value)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Close the run with a status."""
        _client(self.uri).set_terminated(self.run_id, status)

    def _write(self, points: Sequence[Metric]) -> None:
        for batch in _batches(points, METRICS_PER_BATCH):
            _client(self.uri).log_batch(self.run_id, metrics=batch)

    @contextmanager
    def _tolerate_lost_server(self) -> Iterator[None]:
        try:
            yield
        except (MlflowException, OSError) as error:  # OSError: also every error of requests
            if self.run_id not in _lost_runs:
                _lost_runs.add(self.run_id)
                _logger.warning("MLflow at %s takes no metrics, going on without: %s", self.uri, _first_line(error))
        else:
            _lost_runs.discard(self.run_id)


@lru_cache
def _client(uri: str) -> MlflowClient:
    return MlflowClient(uri)


def _absolute(uri: str) -> str:
    """Make a SQLite path absolute: Ray workers run in other folders than the driver."""
    if not uri.startswith(_SQLITE):
        return uri
    return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).absolute()}"


def _check_sqlite(uri: str, create: bool) -> None:
    path = Path(uri.removeprefix(_SQLITE))
    if not create and not path.is_file():
        raise UserError(f"no MLflow store at {uri}; run an experiment first, or set MLFLOW_TRACKING_URI to its store")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=_HEALTH_TIMEOUT_S)
        try:
            connection.execute("BEGIN IMMEDIATE")  # needs a readable header and the right to write
            connection.rollback()
        finally:
            connection.close()
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"MLflow store {uri} cannot be used ({error}); set MLFLOW_TRACKING_URI to a writable file or a server"
        ) from error


def _check_server(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_HEALTH_TIMEOUT_S):
            pass
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise UserError(f"MLflow server {uri} is not healthy (HTTP {error.code}); see its log") from error
        # Something answers, perhaps a proxy that hides /health: the first real call will tell.
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(
            f"MLflow server {uri} does not answer ({error}); start it, or set MLFLOW_TRACKING_URI to one that runs"
        ) from error


def _create_experiment(client: MlflowClient, uri: str, experiment: str) -> str:
    """Create the experiment; a server chooses the artifact location itself."""
    location = None
    if uri.startswith(_SQLITE):
        location = (Path(uri.removeprefix(_SQLITE)).parent / "mlartifacts").as_uri()
    try:
        return client.create_experiment(experiment, location)
    except MlflowException as error:
        made_meanwhile = client.get_experiment_by_name(experiment)
        if made_meanwhile is None:
            raise UserError(f"MLflow cannot make experiment {experiment!r}: {_first_line(error)}") from error
        return made_meanwhile.experiment_id


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


def _batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _shorten(key: str, text: str) -> str:
    if len(text) > PARAM_LENGTH:
        _logger.warning("parameter %s has %d characters; MLflow keeps the first %d", key, len(text), PARAM_LENGTH)
    return text[:PARAM_LENGTH]


def _points(step: int, metrics: Mapping[str, float]) -> list[Metric]:
    now_ms = int(time.time() * 1000)
    return [Metric(key, float(value), now_ms, step) for key, value in metrics.items() if key != "step"]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
