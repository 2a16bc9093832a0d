"""Writes entries to MLflow. Writing an entry again changes nothing, so a delivery may be repeated.

Content by kind: metrics and history `points` [key, value, milliseconds, step]; params and tags `values`; dataset the
fields of MLflow's; artifact `path` and `folder`; text `name` and `text`; model `name`, `folder` and `alias`; status
`status` and `at_ms`.
"""

import logging
import math
import posixpath
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag

from promptdiffuser.tracking.journal import Entry, Kind

# Limits of MLflow's stores and REST interface.
METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
PARAM_LENGTH = 6000
DIGEST_LENGTH = 36

MODEL = "model"
"""Folder of a run's artifacts that holds its trained model."""

Point = tuple[str, float, int, int]
"""Key, value, milliseconds since 1970, step."""


class FileGoneError(Exception):
    """The file of an entry was deleted before it was delivered."""


_Item = TypeVar("_Item")
_logger = logging.getLogger(__name__)


def write(client: MlflowClient, entry: Entry) -> None:
    """Write an entry; raises what MLflow raises, and `FileGoneError`."""
    _WRITERS[entry.kind](client, entry.run_id, **entry.content)


def _write_metrics(client: MlflowClient, run_id: str, points: list[Point]) -> None:
    """Write the points, but for those that repeat the newest stored one of their metric, its step and its value.

    A point that is sent again has its old time, and the store keeps equal points once.
    """
    newest = {key: (step, repr(value)) for key, value, step in _newest(client, run_id)}
    new = []
    for key, value, at_ms, step in points:
        if newest.get(key) != (step, repr(value)):
            newest[key] = step, repr(value)
            new.append(Metric(key, value, at_ms, step))
    _log_metrics(client, run_id, new)


def _write_history(client: MlflowClient, run_id: str, points: list[Point]) -> None:
    """Write the points beyond the last stored step of each metric."""
    last_step = {key: step for key, _, step in _newest(client, run_id)}
    new = []
    for key, value, at_ms, step in points:
        if step > last_step.get(key, -1):
            last_step[key] = step
            new.append(Metric(key, value, at_ms, step))
    _log_metrics(client, run_id, new)


def _newest(client: MlflowClient, run_id: str) -> Iterator[tuple[str, float, int]]:
    """Yield key, value and step of the newest point of every metric: one call, however long the histories."""
    for metric in client.get_run(run_id).data.to_proto().metrics:
        yield metric.key, as_logged(metric.value), metric.step


def as_logged(value: float) -> float:
    """Return a stored value as it was logged: MLflow's databases keep an infinity as the largest double of its sign."""
    return math.copysign(math.inf, value) if abs(value) == sys.float_info.max else value


def _log_metrics(client: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
    for batch in _batches(metrics, METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=batch)


def _write_params(client: MlflowClient, run_id: str, values: dict[str, str]) -> None:
    """Write parameters; MLflow never changes one, so one that differs from the stored is kept and warned about."""
    stored = client.get_run(run_id).data.params
    for key, value in values.items():
        if stored.get(key, value[:PARAM_LENGTH]) != value[:PARAM_LENGTH]:
            _logger.warning("MLflow run %s keeps %s=%s (now %s)", run_id, key, stored[key], value)
        if len(value) > PARAM_LENGTH:
            _logger.warning("parameter %s has %d characters; MLflow keeps the first %d", key, len(value), PARAM_LENGTH)
    new = [Param(key, value[:PARAM_LENGTH]) for key, value in values.items() if key not in stored]
    for batch in _batches(new, PARAMS_PER_BATCH):
        client.log_batch(run_id, params=batch)


def _write_tags(client: MlflowClient, run_id: str, values: dict[str, str]) -> None:
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in values.items()])


def _write_dataset(client: MlflowClient, run_id: str, **fields: str) -> None:
    client.log_inputs(run_id, datasets=[DatasetInput(Dataset(**fields))])


def _write_artifact(client: MlflowClient, run_id: str, path: str, folder: str) -> None:
    if not Path(path).exists():
        raise FileGoneError(f"{path} is gone")
    client.log_artifact(run_id, path, folder or None)


def _write_text(client: MlflowClient, run_id: str, name: str, text: str) -> None:
    client.log_text(run_id, text, name)


def _write_model(client: MlflowClient, run_id: str, name: str, folder: str, alias: str) -> None:
    if not Path(folder).is_dir():
        raise FileGoneError(f"{folder} is gone")
    client.log_artifacts(run_id, folder, MODEL)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if found:
        version = found[0].version
    else:
        source = f"runs:/{run_id}/{MODEL}"
        version = client.create_model_version(name, source, run_id, await_creation_for=0).version
    client.set_registered_model_alias(name, alias, version)


def _write_status(client: MlflowClient, run_id: str, status: str, at_ms: int) -> None:
    client.set_terminated(run_id, status, at_ms)


_WRITERS: dict[Kind, Callable[..., None]] = {
    "metrics": _write_metrics,
    "history": _write_history,
    "params": _write_params,
    "tags": _write_tags,
    "dataset": _write_dataset,
    "artifact": _write_artifact,
    "text": _write_text,
    "model": _write_model,
    "status": _write_status,
}


def file_of(entry: Entry) -> str:
    """Return the path below a run's artifacts that an entry writes to; "" if it writes no file."""
    match entry.kind:
        case "artifact":
            return posixpath.join(entry.content["folder"], Path(entry.content["path"]).name)
        case "text":
            return str(entry.content["name"])
        case "model":
            return MODEL
        case _:
            return ""


def merged(entries: Sequence[Entry]) -> Entry:
    """Return one entry for several of metrics or of histories, so that they become one batch."""
    first, *others = entries
    if not others:
        return first
    points: list[Any] = [point for entry in entries for point in entry.content["points"]]
    return Entry(first.run_id, first.kind, {"points": points})


def _batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
