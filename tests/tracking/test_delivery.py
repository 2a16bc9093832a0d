"""The journal and its delivery: nothing is lost and nothing is written twice, whatever the server does."""

import dataclasses
import json
import logging
import math
import multiprocessing
import shutil
import time
from pathlib import Path

import mlflow.artifacts
import pytest
import torch

from promptdiffuser.errors import UserError
from promptdiffuser.tracking.delivery import Delivery, deliver
from promptdiffuser.tracking.journal import REFUSED, pending
from promptdiffuser.tracking.store import RunLog, Tracker, connect, prepare
from promptdiffuser.tracking.system import system_metrics
from promptdiffuser.training.checkpoint import load_checkpoint, save_checkpoint
from tests.tracking.servers import MlflowServer

PROCESSES, STEPS = 8, 1000


def steps_and_values(log: RunLog, key: str) -> list[tuple[int, float]]:
    """Return every stored point of a metric, in the order of their steps."""
    return sorted((point.step, point.value) for point in connect(log.uri).get_metric_history(log.run_id, key))


@pytest.fixture
def log(tracker: Tracker, tmp_path: Path) -> RunLog:
    """Return the log of a new run, through a journal of its own."""
    run = tracker.run(tmp_path.name, tmp_path.name, None, {})
    return dataclasses.replace(run, journal=tmp_path / "journal")


def test_a_delivery_that_is_repeated_writes_nothing_twice(log: RunLog, tmp_path: Path) -> None:
    """As after a kill between the store's answer and the deletion of the entries."""
    (tmp_path / "note.txt").write_text("kept")
    history = [{"step": step, "train/loss": 1 / (1 + step)} for step in range(5)]
    log.log_history(history[:3])
    log.log_history(history)
    log.log_metrics({"test/return": -20.5, "time/stage_s": float("nan")})
    log.log_params({"backbone": {"layers": 3}})
    log.set_tag("promptdiffuser.note", "value")
    log.log_dataset("cheetah-vel", "d1ge57", "/data", {"episodes": 12})
    log.log_artifact(tmp_path / "note.txt")
    log.log_json("summary.json", {"mean": -32.5})
    log.finish("FAILED")
    journal = tmp_path / "journal"
    shutil.copytree(journal, tmp_path / "copy")
    assert deliver(log.uri, journal) == {}
    assert not pending(journal)
    shutil.copytree(tmp_path / "copy", journal, dirs_exist_ok=True)
    log.log_metrics({"test/return": -20.5})
    log.log_history(history)  # as a training resumed by another process does, which knows of nothing
    assert deliver(log.uri, journal) == {}

    client = connect(log.uri)
    run = client.get_run(log.run_id)
    assert steps_and_values(log, "train/loss") == [(step, 1 / (1 + step)) for step in range(5)]
    assert steps_and_values(log, "test/return") == [(0, -20.5)]
    assert len(client.get_metric_history(log.run_id, "time/stage_s")) == 1
    log.log_metrics({"test/return": -19.0})  # a result that has changed is the newest
    deliver(log.uri, journal)
    assert client.get_run(log.run_id).data.metrics["test/return"] == -19.0
    assert run.data.params == {"backbone.layers": "3"}
    assert run.data.tags["promptdiffuser.note"] == "value"
    assert len(run.inputs.dataset_inputs) == 1
    assert Path(client.download_artifacts(log.run_id, "note.txt")).read_text() == "kept"
    assert run.info.status == "FAILED"
    assert abs(run.info.end_time / 1000 - time.time()) < 60


def test_a_history_from_a_process_that_knows_nothing_adds_what_is_missing(log: RunLog) -> None:
    """A worker that takes over has the complete history; it may be delivered before what the one before it wrote."""
    assert log.journal is not None
    journal = log.journal
    log.log_history([{"step": step, "train/loss": 0.5} for step in range(3)])
    deliver(log.uri, journal)
    log.log_history([{"step": step, "train/loss": 0.5} for step in range(5)])
    (late,) = pending(journal)
    late.rename(late.with_name("9" + late.name[1:]))
    other = dataclasses.replace(log, journal=None)
    other.log_history([{"step": step, "train/loss": 0.5} for step in range(7)])
    deliver(log.uri, journal)
    assert steps_and_values(log, "train/loss") == [(step, 0.5) for step in range(7)]


def test_what_the_store_refuses_is_set_aside_and_the_rest_goes_on(
    log: RunLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log.log_metrics({"train/loss": 1.0}, step=1)
    log.log_metrics({"bad = key?": 1.0}, step=1)
    log.log_metrics({"train/loss": 0.5}, step=2)
    (tmp_path / "gone.txt").write_text("x")
    log.log_artifact(tmp_path / "gone.txt")
    (tmp_path / "gone.txt").unlink()
    log.finish()
    assert log.journal is not None
    assert deliver(log.uri, log.journal) == {}
    assert steps_and_values(log, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert connect(log.uri).get_run(log.run_id).info.status == "FINISHED"
    kinds = [json.loads(path.read_text())["kind"] for path in (log.journal / REFUSED).iterdir()]
    assert sorted(kinds) == ["artifact", "metrics"]
    assert "bad = key?" in caplog.text
    assert "gone.txt is gone" in caplog.text


def test_entries_of_another_store_stay(log: RunLog) -> None:
    """Delivering to the wrong store loses nothing, and runs that it knows get theirs."""
    assert log.journal is not None
    dataclasses.replace(log, run_id="0" * 32).log_metrics({"train/loss": 1.0})
    log.log_metrics({"train/loss": 2.0})
    stuck = deliver(log.uri, log.journal)
    assert list(stuck) == ["0" * 32]
    assert "MLFLOW_TRACKING_URI" in stuck["0" * 32]
    assert len(pending(log.journal)) == 1
    assert steps_and_values(log, "train/loss") == [(0, 2.0)]


def test_a_model_is_registered_once_and_comes_back_as_it_was(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the server into the object store, and out of the registry by its alias; nothing of it is pickled."""
    weights = {"layer.weight": torch.arange(6.0).reshape(2, 3)}
    save_checkpoint(tmp_path / "model", {"weights": weights}, {"model": {"kind": "backbone"}})
    tracker = prepare(server.uri, "models", journal=tmp_path / "journal")
    versions = []
    for number in range(2):
        log = tracker.run(f"pretrain {number}", f"pretrain {number}", None, {})
        for _ in range(2):
            log.log_model("models-backbone", tmp_path / "model", "pretrain")
            assert deliver(server.uri, tmp_path / "journal") == {}
        version = connect(server.uri).get_model_version_by_alias("models-backbone", "pretrain")
        assert version.run_id == log.run_id
        versions.append(version.version)
    assert [int(version) for version in versions] == [1, 2]
    assert len(connect(server.uri).search_model_versions("name = 'models-backbone'")) == 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    found = mlflow.artifacts.download_artifacts("models:/models-backbone@pretrain")
    assert torch.equal(load_checkpoint(Path(found)).tensors["weights"]["layer.weight"], weights["layer.weight"])
    stored = {Path(name).suffix for name in server.stored_files() if log.run_id in name}
    assert stored == {".json", ".safetensors"}


def test_use_of_the_machine_is_logged(log: RunLog) -> None:
    """As `system/...`, which MLflow shows on a page of its own."""
    with system_metrics(log, seconds_between=1.1):
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            math.factorial(2000)
    assert log.journal is not None
    deliver(log.uri, log.journal)
    cpu = steps_and_values(log, "system/cpu_utilization_percentage")
    assert len(cpu) >= 2
    assert all(0 < value <= 100 for _, value in cpu)
    assert abs(cpu[-1][0] - time.time()) < 60
    assert "system/system_memory_usage_megabytes" in connect(log.uri).get_run(log.run_id).data.metrics


def log_as_a_job_does(tracker: Tracker, parent: RunLog, number: int, folder: Path) -> None:
    """Log 1,000 steps to a run of its own and deliver them meanwhile; runs in a process of its own."""
    journal = folder / str(number)
    with Delivery(tracker.uri, journal):
        log = dataclasses.replace(tracker, journal=journal).run(f"job {number}", f"job {number}", parent, {})
        for step in range(STEPS):
            log.log_metrics({"train/loss": number + step / STEPS}, step)
            time.sleep(0.001)
        dataclasses.replace(parent, journal=journal).set_tag(f"job.{number}", log.run_id)
        log.finish()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_eight_processes_log_a_thousand_steps_each(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Nothing is lost, nothing is there twice."""
    uri = request.getfixturevalue("tracker").uri if kind == "sqlite" else request.getfixturevalue("server").uri
    tracker = prepare(uri, "eight")
    parent = tracker.run("eight", "eight", None, {})
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "mlflow.store.tracking.sqlalchemy_store"])
    workers = [
        context.Process(target=log_as_a_job_does, args=(tracker, parent, number, tmp_path))
        for number in range(PROCESSES)
    ]
    for process in workers:
        process.start()
    for process in workers:
        process.join(120)
    assert [process.exitcode for process in workers] == [0] * PROCESSES
    assert not list(tmp_path.glob("*/*.json"))
    tags = connect(uri).get_run(parent.run_id).data.tags
    for number in range(PROCESSES):
        log = RunLog(uri, tags[f"job.{number}"])
        assert steps_and_values(log, "train/loss") == [(step, number + step / STEPS) for step in range(STEPS)]
        assert connect(uri).get_run(log.run_id).info.status == "FINISHED"


def test_an_outage_of_the_server_loses_nothing_and_holds_nothing_up(
    server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is killed while it is written to; logging goes on at once, a run that is begun meanwhile waits."""
    monkeypatch.setattr("promptdiffuser.tracking.delivery.SECONDS_AFTER_FAILURE", 0.5)
    monkeypatch.setattr("promptdiffuser.tracking.store._SECONDS_BETWEEN_TRIES", 0.5)
    tracker = prepare(server.uri, "outage", journal=tmp_path / "journal")
    (tmp_path / "note.txt").write_text("kept")
    with Delivery(server.uri, tmp_path / "journal"):
        log = tracker.run("outage", "outage", None, {})
        for step in range(300):
            if step == 100:
                server.stop()
            if step == 200:
                server_starts = multiprocessing.pool.ThreadPool(1).apply_async(server.start)
                second = tracker.run("begun meanwhile", "second", log, {})
            started = time.perf_counter()
            log.log_metrics({"train/loss": float(step)}, step)
            assert time.perf_counter() - started < 0.5
            time.sleep(0.03)
        log.log_artifact(tmp_path / "note.txt")
        second.log_params({"layers": 3})
        log.finish()
        server_starts.get()
    assert steps_and_values(log, "train/loss") == [(step, float(step)) for step in range(300)]
    client = connect(server.uri)
    assert client.get_run(second.run_id).data.params == {"layers": "3"}
    assert client.get_run(log.run_id).info.status == "FINISHED"
    # Files go through the server to the object store.
    assert Path(client.download_artifacts(log.run_id, "note.txt", str(tmp_path))).read_text() == "kept"
    assert any(log.run_id in name and name.endswith("note.txt") for name in server.stored_files())
    assert caplog.text.count("does not answer") == 2
    assert "is back" in caplog.text


def test_a_journal_waits_for_its_server(tracker: Tracker, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A job that ends while the server is away says what waits; delivering later to no server is an error."""
    log = RunLog("http://127.0.0.1:9", "lost", tmp_path / "journal")
    with caplog.at_level(logging.WARNING), Delivery(log.uri, tmp_path / "journal"):
        log.log_metrics({"train/loss": 1.0}, step=1)
    assert "1 entries wait" in caplog.text
    with pytest.raises(UserError, match="does not answer"):
        deliver(log.uri, tmp_path / "journal")
