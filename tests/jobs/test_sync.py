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


def test_damaged_entries_are_named_and_not_counted_as_delivered(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, journal = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "outputs" / "first" / "journal"
    log = prepare(uri, "first", journal=journal).run("run", "run", None, {})
    for step in range(3):
        log.log_metrics({"test/return": -20.0}, step)
    sorted(journal.glob("*.json"))[1].write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    outcome = run("sync", "--outputs", tmp_path / "outputs")
    assert outcome.status == 0
    assert "2 entries delivered, 0 left" in outcome.output
    assert f"1 entries that are damaged or that MLflow refuses are in {journal / 'refused'}" in outcome.output


@pytest.mark.parametrize(
    ("uri", "folder", "word"),
    [
        ("http://127.0.0.1:9", ".", "does not answer"),
        ("http://anna:s3cret@127.0.0.1:9", ".", "MLFLOW_TRACKING_USERNAME"),
        ("http://127.0.0.1:9?key=s3cret", ".", "does not answer"),
        ("", "no", "no"),
    ],
)
def test_bad_input_is_named(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, folder: str, word: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    outcome = run("sync", "--outputs", tmp_path / folder)
    assert outcome.status == 2
    assert word in outcome.errors
    assert outcome.errors.count("\n") == 1
    assert "s3cret" not in outcome.errors + outcome.output
