"""`jobs/sync.py`: what experiments logged while MLflow was away is delivered, and what is not is named."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from promptdiffuser.tracking.store import RunLog, prepare
from tests.jobs.scripts import Runner, runner


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    return runner(monkeypatch, capsys)


def test_what_waits_is_delivered_and_the_rest_is_named(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    journals = [tmp_path / "outputs" / name / "journal" for name in ("first", "second")]
    logs = [prepare(uri, log.parent.name, journal=log).run("run", "run", None, {}) for log in journals]
    for log in logs:
        log.log_metrics({"test/return": -20.0})
    RunLog(uri, "f" * 32, journals[1]).log_metrics({"test/return": -30.0})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for _ in range(2):
        outcome = run("sync", "--outputs", tmp_path / "outputs")
        assert outcome.status == 2
        assert "1 entries could not be delivered" in outcome.errors
        assert f"run {'f' * 32}: the store does not know it" in outcome.output
    for log in logs:
        assert [point.value for point in MlflowClient(uri).get_metric_history(log.run_id, "test/return")] == [-20.0]
    next(journals[1].glob("*.json")).unlink()
    assert run("sync", "--outputs", tmp_path / "outputs").status == 0


@pytest.mark.parametrize(("uri", "folder", "word"), [("http://127.0.0.1:9", ".", "does not answer"), ("", "no", "no")])
def test_bad_input_is_named(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, folder: str, word: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    outcome = run("sync", "--outputs", tmp_path / folder)
    assert outcome.status == 2
    assert word in outcome.errors
