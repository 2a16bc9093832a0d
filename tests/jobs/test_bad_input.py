"""Jobs refuse bad input before they start anything: exit status 2 and a message that names the thing.

These run the real scripts, each in a process of its own.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from promptdiffuser.data.parts import part_path
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tracking.store import prepare
from promptdiffuser.training.checkpoint import save_checkpoint
from tests.data.synthetic import write_dataset
from tests.jobs.forked import LIMIT_S, ROOT

FAMILY = FAMILIES["cheetah-vel"]
PASSWORD = "hunter2"


@dataclass(frozen=True)
class Case:
    """A command line; `{inputs}` stands for the folder of prepared datasets and checkpoints."""

    script: str
    arguments: str
    names: tuple[str, ...]
    """What the message must hold."""
    tracking: str | None = None
    """MLFLOW_TRACKING_URI; the folder's own store without it."""


CASES = {
    "unknown recipe": Case("collect", "nope", ("nope", "quickstart", "cheetah-vel")),
    "unknown field": Case("pretrain", "quickstart --backbone.layerz 3", ("--backbone.layerz", "--backbone.layers")),
    "heads that do not divide the width": Case(
        "pretrain", "quickstart --backbone.heads 3 --backbone.width 128", ("backbone.heads", "backbone.width", "128")
    ),
    "folder that is no dataset": Case(
        "pretrain", "quickstart --dataset {inputs}/empty", ("{inputs}/empty", "manifest.json")
    ),
    "changed dataset": Case(
        "pretrain", "quickstart --dataset {inputs}/changed", ("{inputs}/changed", part_path(7, "expert", 0), "digest")
    ),
    "dataset whose address holds a password": Case(
        "pretrain", f"quickstart --dataset s3://someone:{PASSWORD}@bucket/data", ("credentials", "AWS_ACCESS_KEY_ID")
    ),
    "dataset without the quality": Case(
        "pretrain",
        "quickstart --dataset {inputs}/dataset --collection.qualities medium --quality medium"
        " --evaluation.few-shot.quality medium",
        ("{inputs}/dataset", "no medium episodes"),
    ),
    "quality that is not collected": Case(
        "collect", "quickstart --quality mixed", ("quality is mixed", "collection.qualities", "expert")
    ),
    "dataset of another family": Case(
        "pretrain", "cheetah-dir --dataset {inputs}/dataset", ("{inputs}/dataset", "cheetah-vel", "cheetah-dir")
    ),
    "backbone of another family": Case(
        "train_diffuser",
        "quickstart --evaluation.few-shot.episodes 1 --dataset {inputs}/dataset"
        " --backbone-checkpoint {inputs}/other-family",
        ("{inputs}/other-family", "ant-dir", "cheetah-vel"),
    ),
    "folder that is no backbone": Case(
        "train_diffuser",
        "quickstart --evaluation.few-shot.episodes 1 --dataset {inputs}/dataset --backbone-checkpoint {inputs}/empty",
        ("{inputs}/empty", "manifest.json"),
    ),
    "dead MLflow server": Case("pretrain", "quickstart", ("http://127.0.0.1:9",), tracking="http://127.0.0.1:9"),
    "too few CPUs": Case(
        "collect",
        "quickstart --cluster.local-cpus 1 --cluster.rollout-actors 3",
        ("needs 3 CPUs", "has 1", "--cluster.rollout-actors"),
    ),
    "more Train workers than CPUs": Case(
        "pretrain",
        "quickstart --evaluation.few-shot.episodes 1 --dataset {inputs}/dataset --cluster.train-workers 9",
        ("needs 10 CPUs", "has 4", "--cluster.train-workers"),
    ),
    "no CPUs left to score snapshots": Case(
        "pretrain",
        "quickstart --evaluation.few-shot.episodes 1 --dataset {inputs}/dataset"
        " --pretraining.optimisation.snapshot-every 10",
        ("needs 5 CPUs", "has 4", "snapshots"),
    ),
    "GPU where there is none": Case(
        "pretrain",
        "quickstart --evaluation.few-shot.episodes 1 --dataset {inputs}/dataset --cluster.gpus-per-worker 64",
        ("128 GPUs", "--cluster.gpus-per-worker"),
    ),
    "sweep that chooses on test tasks": Case(
        "sweep", "quickstart-guidance --objective test/return", ("test/return", "validation/return", "--confirm")
    ),
    "population of trainings on Ray Train": Case(
        "sweep", "quickstart-backbone --stopping population", ("population", "checkpoints", "Ray Train")
    ),
    "outputs that cannot be written": Case(
        "pretrain", "quickstart --outputs {inputs}/mlflow.db/below", ("mlflow.db/below", "--outputs")
    ),
    "outputs on an object store": Case(
        "collect", f"quickstart --outputs s3://me:{PASSWORD}@bucket/outputs", ("s3://", "not supported yet", "folder")
    ),
    "backbone on an object store": Case(
        "train_diffuser", "quickstart --backbone-checkpoint=gs://bucket/backbone", ("gs://", "not supported yet")
    ),
    "sweep with outputs on an object store": Case(
        "sweep", "quickstart-guidance --outputs s3://bucket/outputs", ("s3://", "not supported yet")
    ),
    "benchmark with outputs on an object store": Case(
        "benchmark", "guidance-ablation --outputs s3://bucket/outputs", ("s3://", "not supported yet")
    ),
    "delivery from an object store": Case("sync", "--outputs s3://bucket/outputs", ("s3://", "not supported yet")),
    "histograms on an object store": Case(
        "describe", "{inputs}/dataset --histograms s3://bucket/pictures", ("s3://", "not supported yet")
    ),
    "film on an object store": Case(
        "render", "cheetah-vel --output s3://bucket/film.gif", ("s3://", "not supported yet")
    ),
}
REFUSED_BY_THE_CLUSTER = {
    "too few CPUs",
    "more Train workers than CPUs",
    "no CPUs left to score snapshots",
    "GPU where there is none",
}
"""What a cluster has is only known where it is joined; the stage's folder is made by then."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    folder: Path
    status: int | None
    """None if it had to be stopped."""
    stderr: str


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "empty").mkdir()
    write_dataset(folder / "dataset", FAMILY, FAMILY.tasks, episodes=1)
    shutil.copytree(folder / "dataset", folder / "changed")
    part = folder / "changed" / part_path(7, "expert", 0)
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    save_checkpoint(
        folder / "other-family",
        {"weights": {"weight": torch.zeros(1)}},
        {"model": {"kind": "backbone", "family": "ant-dir", "config": {}}},
    )
    # Making a store takes seconds, so it is made once and copied.
    prepare(f"sqlite:///{folder}/mlflow.db", "quickstart")
    return folder


@pytest.fixture(scope="module")
def outcomes(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folders = [tmp_path_factory.mktemp("job") for _ in CASES]
    commands = []
    for case, folder in zip(CASES.values(), folders, strict=True):
        shutil.copy(inputs / "mlflow.db", folder)
        tracking = {} if case.tracking is None else {"MLFLOW_TRACKING_URI": case.tracking}
        commands.append([str(folder), tracking, case.script, case.arguments.format(inputs=inputs).split()])
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    environment |= {"PYTHONPATH": str(ROOT / "platform"), "COLUMNS": "300", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.jobs.forked"],
        cwd=ROOT,
        env=environment,
        input=json.dumps(commands),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return {
        name: Outcome(folder, status, (folder / "stderr").read_text())
        for name, folder, status in zip(CASES, folders, json.loads(ended.stdout), strict=True)
    }


def stage_folders(outcome: Outcome) -> list[str]:
    return sorted(path.name for path in outcome.folder.glob("outputs/*/*") if path.is_dir())


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_by_name(name: str, outcomes: dict[str, Outcome], inputs: Path) -> None:
    outcome = outcomes[name]
    assert outcome.status is not None, f"still at work after {LIMIT_S:.0f} s:\n{outcome.stderr[-3000:]}"
    assert "Traceback" not in outcome.stderr
    assert outcome.status == 2, outcome.stderr
    for word in CASES[name].names:
        assert word.format(inputs=inputs) in outcome.stderr, outcome.stderr
    assert PASSWORD not in outcome.stderr


@pytest.mark.parametrize("name", [name for name in CASES if name not in REFUSED_BY_THE_CLUSTER])
def test_refused_job_has_started_no_stage(name: str, outcomes: dict[str, Outcome]) -> None:
    assert stage_folders(outcomes[name]) == []


@pytest.mark.parametrize("name", sorted(REFUSED_BY_THE_CLUSTER))
def test_job_without_enough_resources_has_made_nothing(name: str, outcomes: dict[str, Outcome]) -> None:
    folder = outcomes[name].folder
    assert not [*folder.rglob("*.parquet"), *folder.rglob("*.safetensors")]


@pytest.mark.parametrize("name", CASES)
def test_refused_job_leaves_no_run_that_seems_to_work(name: str, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[name]
    if outcome.status is None:
        pytest.fail("the job had to be stopped")
    with sqlite3.connect(outcome.folder / "mlflow.db") as store:
        runs = store.execute("select name, status from runs").fetchall()
    assert [run for run in runs if run[1] == "RUNNING"] == []
