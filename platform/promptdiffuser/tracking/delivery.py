"""Brings a journal to its store, in a thread beside the work, so that neither a slow nor a lost server holds it up.

An entry is deleted after the store has taken it, and writing one again changes nothing: a delivery that is killed or
whose answer is lost leaves nothing out and writes nothing twice.
"""

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

from promptdiffuser.errors import UserError
from promptdiffuser.files import locked, tidy
from promptdiffuser.tracking.addresses import check_answers, first_line, shown
from promptdiffuser.tracking.journal import Entry, pending, read, set_aside
from promptdiffuser.tracking.store import client_of
from promptdiffuser.tracking.writing import FileGoneError, file_of, merged, write

SECONDS_BETWEEN = 1.0
"""MLflow takes some 20 ms for a call; more than one batch a second and run gains nothing."""
SECONDS_AFTER_FAILURE = 5.0

_Item = tuple[Path, Entry]
_logger = logging.getLogger(__name__)


def deliver(uri: str, folder: Path) -> dict[str, str]:
    """Deliver the entries of a journal, in the order of each run.

    A file that cannot be delivered, as when the bucket is away, holds back later versions of the same file, nothing
    else: the run gets its metrics and its status.

    Returns:
        Runs with entries that the store could not take now, so that they stay, and why.

    Raises:
        UserError: The store does not answer.
    """
    if not pending(folder):
        return {}
    check_answers(uri)
    stuck = {}
    with locked(folder / ".lock"):
        tidy(folder)
        runs: dict[str, list[_Item]] = {}
        for path, entry in read(pending(folder)):
            runs.setdefault(entry.run_id, []).append((path, entry))
        for run_id, items in runs.items():
            if failed := _deliver_run(uri, items):
                stuck[run_id] = next(iter(failed.values()))
    return stuck


def _reason(error: Exception) -> str:
    if isinstance(error, MlflowException) and error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
        return "the store does not know it; MLFLOW_TRACKING_URI must name the one that it was made in"
    return first_line(error)


def _deliver_run(uri: str, items: Iterable[_Item]) -> dict[str, str]:
    """Deliver a run's entries; return what failed, as the name of a file or "" for the rest, and why."""
    failed: dict[str, str] = {}
    for part in _parts(items):
        file = file_of(part[0][1])
        if file in failed:
            continue
        try:
            _send(client_of(uri), part)
        except Exception as error:  # whatever it is, the entries stay and the other runs go on
            check_answers(uri)
            failed[file] = _reason(error)
            if not file:
                break
    return failed


def _parts(items: Iterable[_Item]) -> Iterator[Sequence[_Item]]:
    """Yield the entries that are written together: successive ones of metrics or of histories."""
    for kind, group in groupby(items, key=lambda item: item[1].kind):
        together = list(group)
        yield from [together] if kind in ("metrics", "history") else [[item] for item in together]


def _send(client: MlflowClient, items: Sequence[_Item]) -> None:
    """Write entries and delete their files; one that the store will never take is set aside."""
    try:
        write(client, merged([entry for _, entry in items]))
    except (MlflowException, FileGoneError) as error:
        if isinstance(error, MlflowException) and error.error_code != ErrorCode.Name(INVALID_PARAMETER_VALUE):
            raise
        if len(items) > 1:
            for item in items:
                _send(client, [item])
        else:
            _logger.error("MLflow refuses %s: %s", set_aside(items[0][0]), first_line(error))
    else:
        for path, _ in items:
            path.unlink()


class Delivery:
    """A context that delivers what an earlier process left, then what its body and the body's workers add."""

    def __init__(self, uri: str, folder: Path) -> None:
        self._uri, self._folder = uri, folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="journal")
        self._away, self._stuck = False, set[str]()

    def __enter__(self) -> None:
        self._deliver()
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._deliver()
        if left := len(pending(self._folder)):
            _logger.warning("%d entries wait in %s; `python jobs/sync.py` delivers them", left, self._folder)

    def _watch(self) -> None:
        while not self._stop.wait(SECONDS_AFTER_FAILURE if self._away or self._stuck else SECONDS_BETWEEN):
            self._deliver()

    def _deliver(self) -> None:
        """Deliver what is there; say it once when the store goes, when it is back, and when a run is stuck."""
        try:
            stuck = deliver(self._uri, self._folder)
        except UserError as error:
            if not self._away:
                _logger.warning("%s; meanwhile what is logged waits in %s", error, self._folder)
            self._away = True
            return
        if self._away:
            _logger.warning("MLflow at %s is back", shown(self._uri))
        for run_id in stuck.keys() - self._stuck:
            _logger.warning("entries of MLflow run %s stay in %s: %s", run_id, self._folder, stuck[run_id])
        self._away, self._stuck = False, set(stuck)
