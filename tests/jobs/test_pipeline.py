"""The pipeline as a user runs it: real MuJoCo, real Ray, real MLflow, small numbers."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from promptdiffuser.evaluation.scores import reference_scores
from promptdiffuser.tasks import FAMILIES
from tests import tiny

pytestmark = pytest.mark.ray
FAMILY = FAMILIES["cheetah-vel"]
STAGES = {"collect", "pretrain", "diffuser-context", "adapt", "evaluate"}
INSIDE = {"diffuser-context": "context", "adapt": "prompt-diffuser-context"}
"""Stages that look inside diffusers, and the name of one that they look at."""


def test_every_stage_leaves_its_results(tiny_run: Path) -> None:
    results = tiny.results(tiny_run)
    assert list(results) == tiny.METHODS
    for result in results.values():
        assert len(result["per_task"]) == 5
        assert (result["ci_low"], result["ci_high"]) == (None, None), "two prompts are too few for an interval"
    assert results["prompt-dt"]["tunable_parameters"] == 0 < results["prompt-diffuser-context"]["tunable_parameters"]
    summary = json.loads((tiny_run / "quickstart" / "summary.json").read_text())
    assert summary["tasks"] == {str(task): FAMILY.label(task) for task in FAMILY.test_tasks}
    assert (summary["caution"], summary["has_success"]) == ("", False)
    assert summary["references"] == reference_scores(FAMILY)
    assert summary["protocol"]["few_shot"] == {"episodes": 5, "quality": "expert", "returns": "any", "draw": 0}
    for stage, name in INSIDE.items():
        (inside,) = (tiny_run / "quickstart").glob(f"{stage}-*/prompts_inside.json")
        measures = json.loads(inside.read_text())[name]
        assert measures["task_chance"] == pytest.approx(1 / (len(FAMILY.train_tasks) + 5))
        assert measures["judged_by_simulator"] == 1
    report = (tiny_run / "quickstart" / "report.html").read_text()
    assert f"{results['prompt-dt']['mean']:.2f}" in report


def test_mlflow_has_one_parent_and_a_child_a_stage(tiny_run: Path) -> None:
    client = MlflowClient(f"sqlite:///{tiny_run}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("quickstart").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = [run for run in runs if run.data.tags["promptdiffuser.stage"] == "experiment"]
    children = {r.info.run_name: r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert children.keys() == STAGES
    assert children["pretrain"].inputs.dataset_inputs[0].dataset.digest
    for run in runs:
        assert {run.data.tags[f"promptdiffuser.{name}"] for name in ("family", "seed")} == {"cheetah-vel", "0"}
    assert children["diffuser-context"].data.tags["promptdiffuser.method"] == "context"
    steps = logged_steps(tiny_run)
    assert steps == sorted(set(steps))
    assert steps[-1] == 60
    few_shot = [run for run in runs if run.data.tags["promptdiffuser.stage"] == "few-shot-task"]
    assert {run.data.tags["promptdiffuser.task"] for run in few_shot} == {"2", "7", "15", "23", "26"}
    assert all(children[stage].data.metrics[f"inside/{name}/diversity"] > 0 for stage, name in INSIDE.items())


def test_a_second_run_recognises_every_stage(tiny_run: Path) -> None:
    before = tiny.results(tiny_run)
    before_s = cpu_seconds_of_children()
    output = tiny.run_pipeline(tiny_run)
    assert output.count("done before") == len(STAGES)
    # A minute is the promise; without a stage to run, nothing but imports and the report is left. Seconds of computing
    # count, as those on the clock belong to whatever else the machine does too.
    assert cpu_seconds_of_children() - before_s < 60
    assert tiny.results(tiny_run) == before


def test_other_methods_leave_the_earlier_results(tiny_run: Path, tmp_path: Path) -> None:
    outputs = shutil.copytree(tiny_run, tmp_path / "outputs", symlinks=True)
    experiment = outputs / "quickstart"
    (earlier,) = experiment.glob("results-*")
    before = {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()}
    assert {path.name for path in before} > {"summary.json", "report.html", "experiment.json", "methods.csv"}
    tiny.run_pipeline(outputs, tiny.WITHOUT_DIFFUSER)
    assert {path: path.read_bytes() for path in before} == before
    (later,) = set(experiment.glob("results-*")) - {earlier}
    assert (experiment / "latest").readlink() == Path(later.name)
    assert list(tiny.results(outputs)) == tiny.WITHOUT_DIFFUSER
    for name in ("summary.json", "report.html", "experiment.json"):
        assert (experiment / name).resolve() == later / name


def test_a_killed_driver_and_ctrl_c_lose_nothing(tiny_run: Path, tmp_path: Path) -> None:
    process = tiny.start_pipeline(tmp_path, tiny.WITHOUT_DIFFUSER)
    wait_for(process, tmp_path, "quickstart/pretrain-*/checkpoints/step-*")
    process.kill()  # the driver alone; what it started goes with it
    process.communicate()
    assert not list(tmp_path.glob("quickstart/pretrain-*/stage.json"))
    shown = status(tmp_path)
    assert shown["collect"].startswith("done took ")
    assert re.fullmatch(r"interrupted update \d+ of 60", shown["pretrain"])
    assert (shown["adapt"], shown["evaluate"]) == ("to do", "to do")

    process = tiny.start_pipeline(tmp_path, tiny.WITHOUT_DIFFUSER)
    wait_for(process, tmp_path, "quickstart/evaluate-*")
    time.sleep(0.5)  # into the stage's work, which starts with the actors and takes some seconds
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 130, output
    assert not (tmp_path / "quickstart" / "summary.json").exists()

    shown = status(tmp_path)
    assert [shown[stage].split()[0] for stage in ("collect", "pretrain", "adapt")] == ["done"] * 3
    assert shown["evaluate"].startswith("interrupted")

    assert tiny.run_pipeline(tmp_path, tiny.WITHOUT_DIFFUSER).count("done before") == 3
    assert all(state.startswith("done") for state in status(tmp_path).values())
    assert tiny.results(tmp_path)["prompt-dt"] == tiny.results(tiny_run)["prompt-dt"]
    broken, unbroken = (next(folder.glob("quickstart/pretrain-*")) for folder in (tmp_path, tiny_run))
    assert (broken / "model/weights.safetensors").read_bytes() == (unbroken / "model/weights.safetensors").read_bytes()
    assert logged_steps(tmp_path) == logged_steps(tiny_run)


def status(folder: Path) -> dict[str, str]:
    """Return what `promptdiffuser status` says of each stage of the tiny quickstart without a diffuser."""
    ended = subprocess.run(
        [Path(sys.executable).with_name("promptdiffuser"), "status", *tiny.arguments(folder, tiny.WITHOUT_DIFFUSER)],
        cwd=folder,
        env=tiny.environment(folder) | {"COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.strip("│").split("│") for line in ended.stdout.splitlines() if line.startswith("│")]
    return {name.strip(): " ".join(cell.strip() for cell in cells).strip() for name, *cells in rows}


def cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def wait_for(process: subprocess.Popen[str], folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 400
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def logged_steps(folder: Path) -> list[int]:
    """Return the steps of pre-training's loss in MLflow, as they were logged."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs(
        [client.get_experiment_by_name("quickstart").experiment_id], "tags.`promptdiffuser.stage` = 'pretrain'"
    )
    return [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
