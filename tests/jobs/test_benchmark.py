"""The benchmark job as a user runs it: killed among its adaptations, continued, extended by a method and a size."""

import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from tests import tiny

METHODS = ["prompt-dt", "prompt-diffuser-multi-task"]
OPTIONS = [
    *["--seeds", "1", "2", "--experiment.collection.episodes-per-task", "5", "--experiment.guidance.batch-size", "4"],
    *["--experiment.diffuser.denoising-steps", "5", "--experiment.diffuser.multi-task.steps", "5"],
    *["--experiment.diffuser.multi-task.checkpoint-every", "5", "--experiment.cluster.rollout-actors", "1"],
    *["--experiment.evaluation.prompts", "1", "--experiment.evaluation.episodes-per-prompt", "1"],
    *["--experiment.evaluation.horizon", "20"],
]


def start(folder: Path, base: Path, *options: str) -> subprocess.Popen[str]:
    (dataset,), (backbone,) = base.glob("quickstart/collect-*/dataset"), base.glob("quickstart/pretrain-*/model")
    job = [sys.executable, str(tiny.ROOT / "jobs" / "benchmark.py"), "cheetah-vel-methods", *OPTIONS, *options]
    given = ["--dataset", str(dataset), "--backbone-checkpoint", str(backbone), "--outputs", str(folder)]
    return subprocess.Popen(
        [*job, *given],
        cwd=folder,
        env=tiny.environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def table_of(folder: Path) -> pd.DataFrame:
    """Return the newest table, without what it cost, which differs from run to run."""
    newest = max(folder.glob("*/benchmark-*/table.parquet"), key=lambda path: path.stat().st_mtime)
    return pd.read_parquet(newest).drop(columns=["adapt_s", "memory_gib"])


@pytest.mark.ray
def test_a_killed_benchmark_goes_on_and_grows_without_doing_anything_twice(tiny_run: Path, tmp_path: Path) -> None:
    methods = ["--experiment.methods", *METHODS]
    process, deadline = start(tmp_path, tiny_run, *methods), time.monotonic() + 200
    while not (cells := list(tmp_path.glob("*/adaptations/*/task-*/policy/manifest.json"))):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    models = list(tmp_path.glob("*/diffuser-context-*/model/manifest.json"))
    assert len(models) == 2
    before = {path: path.stat().st_mtime_ns for path in [*cells, *models]}

    process = start(tmp_path, tiny_run, *methods)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    first = table_of(tmp_path)
    assert sorted(first["method"]) == sorted(METHODS)
    assert (first["seeds"] == 2).all()
    # Sizes of the few-shot set, a method: what was there is neither made nor played again.
    process = start(
        tmp_path, tiny_run, "--experiment.methods", *METHODS, "mean-prompt", "--few-shot-episodes", "5", "1"
    )
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    grown = table_of(tmp_path)
    assert len(grown) == 6
    again = grown[(grown["few_shot_episodes"] == 5) & grown["method"].isin(METHODS)].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, first)

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("cheetah-vel-methods").experiment_id], max_results=1000)
    of_method = [run for run in runs if run.data.tags["promptdiffuser.stage"] == "method"]
    assert {run.data.tags["promptdiffuser.seed"] for run in of_method} == {"1", "2"}
    assert all("test/return" in run.data.metrics for run in of_method)
