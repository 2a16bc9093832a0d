"""The quickstart made small: every stage for real, on a network that learns nothing in seconds."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
METHODS = ["prompt-dt", "prompt-diffuser-context"]
WITHOUT_DIFFUSER = METHODS[:1]
OPTIONS = [
    *["--cluster.train-workers", "1"],
    *["--collection.episodes-per-task", "5"],
    *["--backbone.width", "16", "--backbone.layers", "1", "--pretraining.loss.batch-size", "16"],
    *["--pretraining.optimisation.steps", "60", "--pretraining.optimisation.checkpoint-every", "10"],
    *["--diffuser.multi-task.steps", "20", "--diffuser.multi-task.checkpoint-every", "5"],
    *["--diffuser.guidance-start", "10", "--diffuser.few-shot.steps", "3", "--guidance.batch-size", "8"],
    *["--evaluation.prompts", "2", "--evaluation.episodes-per-prompt", "1"],
]


def environment(store: Path) -> dict[str, str]:
    """Return the environment of a user whose MLflow store is `store`."""
    others = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    return others | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db"}


def arguments(folder: Path, methods: Sequence[str]) -> list[str]:
    """Return the pipeline's command line."""
    return ["quickstart", *OPTIONS, "--methods", *methods, "--outputs", str(folder)]


def start_pipeline(
    folder: Path, methods: Sequence[str] = METHODS, outputs: Path | None = None, options: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start the tiny quickstart in a process group of its own, as a terminal does.

    Args:
        folder: Folder of the MLflow store, and of the outputs unless they are elsewhere.
        methods: Methods to compare.
        outputs: Folder of the outputs.
        options: Further options.
    """
    command = [sys.executable, str(ROOT / "jobs" / "pipeline.py"), *arguments(outputs or folder, methods), *options]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_pipeline(folder: Path, methods: Sequence[str] = METHODS) -> str:
    """Run the tiny quickstart to its end and return what it printed."""
    process = start_pipeline(folder, methods)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what summary.json says of each method, without seconds and memory, which differ from run to run."""
    summary = json.loads((folder / "quickstart" / "summary.json").read_text())
    return {
        method: {key: value for key, value in result.items() if not key.startswith(("seconds", "memory"))}
        for method, result in summary["methods"].items()
    }


def start_on_base(folder: Path, base: Path, job: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a job that goes on from the dataset and the backbone of a tiny quickstart in `base`."""
    (dataset,), (backbone,) = base.glob("quickstart/collect-*/dataset"), base.glob("quickstart/pretrain-*/model")
    given = ["--dataset", str(dataset), "--backbone-checkpoint", str(backbone), "--outputs", str(folder)]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *arguments, *given],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
