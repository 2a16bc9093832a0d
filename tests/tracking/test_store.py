"""The logger against a real MLflow store: resumes, repeats, several processes, and stores that cannot be used."""

import json
import math
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import mujoco
import pytest

from promptdiffuser.errors import UserError
from promptdiffuser.reporting.mlflow_reader import _metric_histories
from promptdiffuser.tracking.delivery import deliver
from promptdiffuser.tracking.provenance import provenance
from promptdiffuser.tracking.store import RunLog, Tracker, connect, prepare, resolve_uri
from promptdiffuser.tracking.writing import PARAM_LENGTH
from tests.tiny import ROOT


def steps_and_values(log: RunLog, key: str) -> list[tuple[int, float]]:
    """Return every stored point of a metric."""
    return [(point.step, point.value) for point in connect(log.uri).get_metric_history(log.run_id, key)]


def test_relative_sqlite_path_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers that run in another folder reach the same file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/own.db")
    assert resolve_uri() == f"sqlite:///{tmp_path}/runs/own.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert resolve_uri() == "http://tracking:5000"


@pytest.mark.parametrize("name", ["what?", "a b", "a%20b", "a#b", "50%", "a@b", "é"])
@pytest.mark.parametrize("given", ["folder", "address"])
def test_a_store_lies_in_its_folder_whatever_that_is_called(
    name: str, given: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A query of the address stays one; files come back; nothing is made beside the folder."""
    folder = tmp_path / name
    folder.mkdir()
    (tmp_path / "note.txt").write_text("kept")
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(folder if given == "folder" else tmp_path / "away")
    path = "mlflow.db" if given == "folder" else quote(f"../{name}/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}?timeout=30")
    if given == "folder":
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
    uri = resolve_uri()
    assert uri.endswith("?timeout=30") == (given == "address")
    monkeypatch.chdir(tmp_path)
    log = prepare(uri, "named").run("run", "run", None, {})
    log.log_artifact(tmp_path / "note.txt")
    assert Path(connect(uri).download_artifacts(log.run_id, "note.txt")).read_text() == "kept"
    assert sorted(path.name for path in folder.iterdir()) == [".mlflow.db.lock", "mlartifacts", "mlflow.db"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["away", "note.txt", name])
    assert not list((tmp_path / "away").iterdir())


@pytest.mark.parametrize("through", ["store", "journal"])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_numbers_that_are_not_finite_come_back(
    kind: str, through: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """With their sign, once, as metrics and as a history."""
    uri = request.getfixturevalue("tracker").uri if kind == "sqlite" else request.getfixturevalue("server").uri
    journal = tmp_path / "journal" if through == "journal" else None
    log = prepare(uri, "not finite", journal=journal).run("run", tmp_path.name, None, {})
    values = [1.0, math.inf, -math.inf, math.nan, 2.0, -math.inf]
    for step, value in enumerate(values):
        log.log_metrics({"train/each": value}, step)
    log.log_history([{"step": step, "train/all": value} for step, value in enumerate(values)])
    log.log_metrics({"train/each": values[-1]}, len(values) - 1)  # as a stage that runs again does
    if journal is not None:
        assert deliver(uri, journal) == {}
    frame = _metric_histories(connect(uri), {"pretrain": [connect(uri).get_run(log.run_id)]})
    for key in ("train/each", "train/all"):
        read = frame[frame["key"] == key]
        assert list(read["step"]) == list(range(len(values)))
        assert [repr(float(value)) for value in read["value"]] == [repr(value) for value in values]


def test_an_address_of_a_dataset_is_logged_without_a_password(tracker: Tracker) -> None:
    log = tracker.run("secret", "secret", None, {})
    log.log_dataset("secret", "d1ge57", "s3://key:s3cret@bucket/data?secret_key=s3cret", {})
    log.log_dataset("own", "d1ge57", "/data/me@home/set?", {})
    datasets = connect(log.uri).get_run(log.run_id).inputs.dataset_inputs
    sources = sorted(json.loads(entry.dataset.source)["uri"] for entry in datasets)
    assert sources == ["/data/me@home/set?", "s3://bucket/data"]


def test_prepare_finds_the_experiment_again(tracker: Tracker) -> None:
    """A second driver gets the same experiment; artifacts lie beside the database."""
    assert prepare(tracker.uri, "tests") == tracker
    location = connect(tracker.uri).get_experiment(tracker.experiment_id).artifact_location
    assert location == Path(tracker.uri.removeprefix("sqlite:///")).with_name("mlartifacts").as_uri()


def test_resumed_stage_continues_its_run(tracker: Tracker) -> None:
    """The same fingerprint below the same parent is the same run, reopened."""
    parents = [tracker.run("experiment", f"resume-{i}", None, {}) for i in range(2)]
    first = tracker.run("pretrain", "stage", parents[0], {"promptdiffuser.stage": "pretrain"})
    first.finish("FAILED")
    again = tracker.run("pretrain", "stage", parents[0], {"promptdiffuser.stage": "pretrain"})
    client = connect(tracker.uri)
    stored = client.get_run(first.run_id)
    assert again == first
    assert stored.info.status == "RUNNING"
    assert stored.data.tags["mlflow.parentRunId"] == parents[0].run_id
    assert stored.data.tags["promptdiffuser.stage"] == "pretrain"
    assert tracker.run("pretrain", "stage", parents[1], {}) != first
    client.delete_run(first.run_id)
    assert tracker.run("pretrain", "stage", parents[0], {}) != first


def test_runs_say_what_they_were_made_with(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions, the commit (of a copy without history too), and the tags of the tracker are on every run."""
    monkeypatch.setenv("PROMPTDIFFUSER_COMMIT", "abc123-dirty")
    provenance.cache_clear()
    of_seed = prepare(tracker.uri, "tests", {"promptdiffuser.seed": "7"})
    provenance.cache_clear()
    tags = connect(tracker.uri).get_run(of_seed.run("tagged", "tagged", None, {}).run_id).data.tags
    assert tags["mlflow.source.git.commit"] == "abc123"
    assert (tags["promptdiffuser.dirty"], tags["promptdiffuser.seed"]) == ("true", "7")
    versions = {key: value for key, value in tags.items() if key.startswith("promptdiffuser.version.")}
    assert versions["promptdiffuser.version.mujoco"] == mujoco.__version__
    assert len(versions) == 5


def test_history_is_logged_once_and_completely(tracker: Tracker) -> None:
    """A longer history adds its new steps only, metric by metric, over more than one batch."""
    log = tracker.run("history", "history", None, {})
    history = [{"step": step, "train/loss": 1.0 / (step + 1)} for step in range(1200)]
    log.log_history(history)
    log.log_history(history)
    history += [{"step": 1200, "train/loss": math.nan, "validation/loss": 0.5}]
    # A metric that starts late still gets its earlier steps when they arrive with the complete history.
    history[3] = {**history[3], "validation/cosine": 0.25}
    log.log_history(history)
    stored = steps_and_values(log, "train/loss")
    assert [step for step, _ in stored] == list(range(1201))
    assert stored[:1200] == [(step, 1.0 / (step + 1)) for step in range(1200)]
    assert math.isnan(stored[1200][1])
    assert steps_and_values(log, "validation/loss") == [(1200, 0.5)]
    assert steps_and_values(log, "validation/cosine") == [(3, 0.25)]


def test_parameters_can_be_logged_again(tracker: Tracker, caplog: pytest.LogCaptureFixture) -> None:
    """Nested keys are dotted, long values cut, more than one batch goes through, and what is stored stays."""
    log = tracker.run("params", "params", None, {})
    params = {"backbone": {"layers": 3, "heads": {"count": 1}}, "long": "x" * (PARAM_LENGTH + 1)}
    many = {f"p{i}": i for i in range(150)}
    for _ in range(2):
        log.log_params({**params, **many})
    assert "long" in caplog.text
    log.log_params({"backbone": {"layers": 4}})
    assert "keeps backbone.layers=3 (now 4)" in caplog.text
    stored = connect(log.uri).get_run(log.run_id).data.params
    expected = {"backbone.layers": "3", "backbone.heads.count": "1", "long": "x" * PARAM_LENGTH}
    assert stored == {**expected, **{key: str(value) for key, value in many.items()}}


def test_dataset_artifacts_and_status(tracker: Tracker, tmp_path: Path) -> None:
    """A dataset logged twice is one input; artifacts come back as they went in; the run closes."""
    log = tracker.run("inputs", "inputs", None, {})
    for _ in range(2):
        log.log_dataset("cheetah-vel", "d1ge57", "/data/cheetah-vel", {"episodes": 12})
    (tmp_path / "note.txt").write_text("kept")
    log.log_artifact(tmp_path / "note.txt", "notes")
    log.log_json("summary.json", {"mean": -32.5})
    log.finish()
    client = connect(tracker.uri)
    run = client.get_run(log.run_id)
    [dataset] = [entry.dataset for entry in run.inputs.dataset_inputs]
    assert (dataset.name, dataset.digest, json.loads(dataset.profile)) == ("cheetah-vel", "d1ge57", {"episodes": 12})
    assert Path(client.download_artifacts(log.run_id, "notes/note.txt")).read_text() == "kept"
    assert json.loads(Path(client.download_artifacts(log.run_id, "summary.json")).read_text()) == {"mean": -32.5}
    assert run.info.status == "FINISHED"
    with pytest.raises(ValueError, match="36"):
        log.log_dataset("too-long", "d" * 37, "/data", {})


def test_logs_pickle(tracker: Tracker) -> None:
    """Workers get them."""
    log = tracker.run("pickled", "pickled", None, {})
    assert pickle.loads(pickle.dumps(log)) == log


@pytest.mark.parametrize(
    "uri",
    ["http://127.0.0.1:9", "http://127.0.0.1:port", "file:///tmp/mlruns", "nonsense:store", "sqlite:////proc/no/m.db"],
)
def test_unusable_store_is_refused_at_once(uri: str) -> None:
    """The error names the store and the variable that chooses another one."""
    started = time.monotonic()
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI") as error:
        prepare(uri, "tests")
    assert uri in str(error.value)
    assert time.monotonic() - started < 15


def test_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    """A file of something else is left as it is; a missing one is not made by a reader."""
    (tmp_path / "notes.db").write_text("shopping list, much longer than a header of a database would be\n" * 20)
    with pytest.raises(UserError, match="not a database"):
        prepare(f"sqlite:///{tmp_path}/notes.db", "tests")
    with pytest.raises(UserError, match="no MLflow store"):
        connect(f"sqlite:///{tmp_path}/missing.db")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.db"]


TOUCH = """
import sys, time
from pathlib import Path
from promptdiffuser.tracking.store import prepare

folder, name = Path(sys.argv[1]), sys.argv[2]
(folder / name).touch()
while len(list(folder.iterdir())) < 3:
    time.sleep(0.01)
print(prepare(f"sqlite:///{folder.parent}/mlflow.db", "tests").experiment_id)
"""


def test_commands_that_touch_a_new_store_together_all_get_it(tmp_path: Path) -> None:
    """MLflow makes its tables by migrations, of which two at once fail."""
    (tmp_path / "ready").mkdir()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TOUCH, str(tmp_path / "ready"), name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
        )
        for name in "abc"
    ]
    ended = [(*process.communicate(timeout=100), process.returncode) for process in started]
    assert [status for _, _, status in ended] == [0, 0, 0], "\n".join(errors for _, errors, _ in ended)
    assert len({printed for printed, _, _ in ended}) == 1
