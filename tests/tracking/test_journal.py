"""The journal on storage: entries keep their order and arrive, whatever clocks, writers and machines do."""

import dataclasses
import logging
import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from promptdiffuser.files import temporary_name
from promptdiffuser.tracking.delivery import deliver
from promptdiffuser.tracking.journal import REFUSED, Entry, append, pending
from promptdiffuser.tracking.store import RunLog, Tracker, connect, prepare
from tests.tracking.test_delivery import steps_and_values

HOUR_S = 3600


@pytest.fixture
def log(tracker: Tracker, tmp_path: Path) -> RunLog:
    """Return the log of a new run, through a journal of its own."""
    run = tracker.run(tmp_path.name, tmp_path.name, None, {})
    return dataclasses.replace(run, journal=tmp_path / "journal")


def in_processes(target: Callable[..., None], calls: Iterable[tuple[object, ...]]) -> None:
    """Call a function with each of the arguments, in processes of their own, at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    processes = [context.Process(target=target, args=arguments) for arguments in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert {process.exitcode for process in processes} == {0}


def log_with_a_clock(ahead_s: float, log: RunLog, steps: range) -> None:
    """Log steps with a clock that is wrong."""
    right = time.time_ns
    time.time_ns = lambda: right() + int(ahead_s * 1e9)
    log.log_history([{"step": step, "train/loss": step / 100} for step in range(steps.stop)][steps.start :])
    for step in steps:
        log.log_metrics({"train/each": step / 100}, step)


@pytest.mark.parametrize("clocks", [(HOUR_S, 0), (0, -HOUR_S)])
def test_a_clock_that_goes_back_loses_nothing(log: RunLog, clocks: tuple[float, float]) -> None:
    """Ten points wait when the clock, or that of the machine that takes over, is an hour behind."""
    assert log.journal is not None
    for clock, steps in zip(clocks, (range(10), range(10, 20)), strict=True):
        in_processes(log_with_a_clock, [(clock, log, steps)])
    assert deliver(log.uri, log.journal) == {}
    for key in ("train/loss", "train/each"):
        assert steps_and_values(log, key) == [(step, step / 100) for step in range(20)]


def append_many(folder: Path, writer: int) -> None:
    """Append entries, each with its number."""
    for number in range(50):
        append(folder, Entry(f"writer {writer}", "tags", {"values": {"number": str(number)}}))


def test_writers_at_once_share_no_file(tmp_path: Path) -> None:
    """Each one's entries are all there, in its order."""
    in_processes(append_many, [(tmp_path, writer) for writer in range(4)])
    assert len(pending(tmp_path)) == len(list(tmp_path.iterdir())) == 4 * 50
    texts = [path.read_text() for path in pending(tmp_path)]
    for writer in range(4):
        own = [text for text in texts if f"writer {writer}" in text]
        assert [f'"{number}"' in text for number, text in enumerate(own)] == [True] * 50


@pytest.mark.parametrize(
    "damage",
    [
        *["", '{"run_id": "0', "\x00" * 200, "\udcff\udcfe", "[]", "null", '"text"', '{"run_id": "0"}'],
        '{"run_id": "0", "kind": "magic", "content": {}}',
        '{"run_id": "0", "kind": "tags", "content": []}',
    ],
)
def test_a_damaged_entry_is_set_aside_and_the_others_are_delivered(
    log: RunLog, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    assert log.journal is not None
    for step in range(3):
        log.log_metrics({"train/loss": 0.5}, step)
    damaged = pending(log.journal)[1]
    damaged.write_bytes(damage.encode(errors="surrogateescape"))
    assert deliver(log.uri, log.journal) == {}
    assert steps_and_values(log, "train/loss") == [(0, 0.5), (2, 0.5)]
    assert not pending(log.journal)
    assert (log.journal / REFUSED / damaged.name).exists()
    assert f"{REFUSED}/{damaged.name}" in caplog.text


def test_what_a_dead_writer_left_is_deleted_and_what_a_living_one_writes_stays(log: RunLog) -> None:
    assert log.journal is not None
    log.log_metrics({"train/loss": 0.5})
    ended = subprocess.Popen(["true"])
    ended.wait()
    living = log.journal / temporary_name("1.json")
    left = living.with_name(living.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-"))
    for path in (left, living):
        path.write_text("{")
    deliver(log.uri, log.journal)
    assert not left.exists()
    assert living.exists()


def test_files_that_cannot_be_written_hold_back_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The run gets its metrics and its status, and its files once their place is there again, the newest last."""
    uri, journal = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "journal"
    log = prepare(uri, "files", journal=journal).run("run", "run", None, {})
    files = tmp_path / "mlartifacts"
    shutil.rmtree(files)
    files.write_text("not a folder")
    (tmp_path / "table.csv").write_text("kept")
    log.log_json("summary.json", {"mean": 1})
    log.log_metrics({"test/return": -20.0})
    log.log_artifact(tmp_path / "table.csv")
    log.log_json("summary.json", {"mean": 2})
    log.finish()
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            stuck = deliver(uri, journal)
        assert str(files) in stuck[log.run_id]
        run = connect(uri).get_run(log.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.metrics == {"test/return": -20.0}
        assert len(pending(journal)) == 3
    files.unlink()
    assert deliver(uri, journal) == {}
    assert Path(connect(uri).download_artifacts(log.run_id, "table.csv")).read_text() == "kept"
    assert '"mean": 2' in Path(connect(uri).download_artifacts(log.run_id, "summary.json")).read_text()
    assert not (journal / REFUSED).exists()
