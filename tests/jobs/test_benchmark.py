"""The benchmark job as a user runs it: killed among its adaptations, continued, extended by a method and a size."""

import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from promptdiffuser.reporting.compare import compare
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
    return tiny.start_on_base(folder, base, "benchmark", "cheetah-vel-methods", *OPTIONS, *options)


@pytest.mark.ray
def test_a_killed_benchmark_goes_on_and_grows_and_does_nothing_twice(tiny_run: Path, tmp_path: Path) -> None:
    process, deadline = start(tmp_path, tiny_run, "--experiment.methods", *METHODS), time.monotonic() + 400
    while not (cells := list(tmp_path.glob("*/adaptations/*/task-*/policy/manifest.json"))):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    models = list(tmp_path.glob("*/diffuser-context-*/model/manifest.json"))
    assert len(models) == 2
    before = {path: path.stat().st_mtime_ns for path in [*cells, *models]}

    # Another method and size of the few-shot set besides: what was there is not made again.
    more = ["--experiment.methods", *METHODS, "mean-prompt", "--few-shot-episodes", "5", "1"]
    process = start(tmp_path, tiny_run, *more)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (table,) = tmp_path.glob("*/benchmark-*/table.parquet")
    rows = pd.read_parquet(table)
    assert (rows["seeds"] == 2).all()
    assert "mean-prompt" in (table.parent / "index.html").read_text(encoding="utf-8")
    assert sorted(zip(rows["few_shot_episodes"], rows["method"], strict=True)) == sorted(
        (size, method) for size in (1, 5) for method in (*METHODS, "mean-prompt")
    )

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("cheetah-vel-methods").experiment_id], max_results=1000)
    of_method = [run for run in runs if run.data.tags["promptdiffuser.stage"] == "method"]
    assert {run.data.tags["promptdiffuser.seed"] for run in of_method} == {"1", "2"}
    assert all("test/return" in run.data.metrics for run in of_method)

    # The benchmark's own seeds are trainings of one configuration, though draw and start states differ between them.
    of_five = [run for run in of_method if run.data.params["evaluation.few_shot.episodes"] == "5"]
    ids = [run.info.run_id for run in of_five if run.data.tags["promptdiffuser.method"] in ("prompt-dt", "mean-prompt")]
    comparison = compare(f"sqlite:///{tmp_path}/mlflow.db", ids)
    assert comparison.returns["trainings"].to_list() == [2, 2]
    assert comparison.differences["verdict"].to_list() == ["too few trainings"]
    episodes = pd.read_parquet(table.parent / "episodes.parquet")
    assert episodes.groupby("training_seed")["seed"].unique().map(set).pipe(lambda seeds: seeds[1] & seeds[2]) == set()
