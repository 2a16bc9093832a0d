"""The sweep job as a user runs it: killed, continued, its best configuration confirmed on test tasks."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from promptdiffuser.experiment import Experiment
from promptdiffuser.tasks import get_family
from tests import tiny

TRIALS = 3
OPTIONS = [
    *["--trials", str(TRIALS), "--score-every", "10", "--experiment.cluster.train-workers", "1"],
    *["--experiment.collection.episodes-per-task", "5", "--experiment.guidance.batch-size", "8"],
    *["--experiment.diffuser.multi-task.steps", "20", "--experiment.diffuser.multi-task.checkpoint-every", "5"],
    *["--experiment.diffuser.guidance-start", "5"],
    *["--experiment.validation.prompts", "1", "--experiment.evaluation.prompts", "2"],
    *["--experiment.evaluation.episodes-per-prompt", "1", "--experiment.evaluation.horizon", "20"],
]


def start_sweep(folder: Path, base: Path, *options: str) -> subprocess.Popen[str]:
    return tiny.start_on_base(folder, base, "sweep", "quickstart-guidance", *OPTIONS, *options)


@pytest.mark.ray
def test_a_killed_sweep_goes_on_and_its_best_is_confirmed(tiny_run: Path, tmp_path: Path) -> None:
    process, deadline = start_sweep(tmp_path, tiny_run), time.monotonic() + 400
    while not (ended := list(tmp_path.glob("quickstart/sweep-*/trial-*/result.json"))):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    folder, before = ended[0].parents[1], {path: path.read_text() for path in ended}
    assert not (folder / "results.json").exists()

    process = start_sweep(tmp_path, tiny_run, "--confirm")
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert f"sweep quickstart-guidance: grid of 24 points, the first {TRIALS} of them" in output
    assert re.search(r"[1-3] trials? ha(s|ve) ended before", output), output
    assert {path: path.read_text() for path in ended} == before
    rows = json.loads((folder / "results.json").read_text())
    assert [row["trial"] for row in rows] == [f"trial-{number:04d}" for number in range(TRIALS)]

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (sweep,) = client.search_runs(
        [client.get_experiment_by_name("quickstart").experiment_id], "tags.`promptdiffuser.stage` = 'sweep'"
    )
    children = client.search_runs(
        [sweep.info.experiment_id], f"tags.`mlflow.parentRunId` = '{sweep.info.run_id}'", order_by=["start_time"]
    )
    assert sorted(run.info.run_name for run in children) == [row["trial"] for row in rows]
    assert {run.info.status for run in (sweep, *children)} == {"FINISHED"}

    best = max((row for row in rows if row["state"] == "finished"), key=lambda row: row["validation/return"])
    assert sweep.data.metrics["validation/return"] == best["validation/return"]
    experiment = Experiment.from_json((folder / "best.json").read_text())
    assert (experiment.guidance.weight, experiment.diffusion.schedule) == (
        best["guidance.weight"],
        best["diffusion.schedule"],
    )
    summary = json.loads((tmp_path / "quickstart-guidance-confirmed" / "summary.json").read_text())
    assert summary["test_tasks"] == list(get_family("cheetah-vel").test_tasks)
    assert summary["seed"] != experiment.seed
    assert sweep.data.metrics["test/return"] == summary["methods"]["prompt-diffuser-multi-task"]["mean"]
    assert f"{best['trial']} confirmed on 5 test tasks" in output
