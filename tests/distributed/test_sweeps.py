"""Sweeps on a real Ray cluster: Tune runs the trials, rollout actors score them, the ledger keeps what was found."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from promptdiffuser.assembly import backbone_training
from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.store import Dataset
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.sweeps import concurrency_of, run_sweep
from promptdiffuser.distributed.trials import SweepPlan
from promptdiffuser.distributed.validation import Validation
from promptdiffuser.errors import UserError
from promptdiffuser.experiment import ClusterConfig, CollectionConfig, DiffuserTrainingConfig, Experiment
from promptdiffuser.experiment import PretrainingConfig as Pretraining
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.models.denoiser import DenoiserConfig
from promptdiffuser.rollout.protocol import ProtocolConfig
from promptdiffuser.sweeps.ledger import Ledger, Row
from promptdiffuser.sweeps.space import Choices, Range, Space
from promptdiffuser.sweeps.sweep import Sweep
from promptdiffuser.tracking.store import prepare
from promptdiffuser.training.backbone_objective import BackboneLossConfig
from promptdiffuser.training.engine import OptimisationConfig
from promptdiffuser.training.guidance import GuidanceConfig
from promptdiffuser.training.trainings import make_resident, train
from tests.distributed.small_training import settings_of

CPU = torch.device("cpu")
OPTIMISATION = OptimisationConfig(steps=6, learning_rate=1e-2, schedule="constant", checkpoint_every=3)
EXPERIMENT = Experiment(
    name="tiny",
    collection=CollectionConfig(episodes_per_task=3),
    backbone=BackboneConfig(width=16, layers=1, history=4, prompt_length=3, dropout=0.0),
    pretraining=Pretraining(loss=BackboneLossConfig(batch_size=8), optimisation=OPTIMISATION),
    guidance=GuidanceConfig(batch_size=4),
    denoiser=DenoiserConfig(hidden=16),
    diffuser=DiffuserTrainingConfig(
        batch_size=8, context_episodes=2, context_transitions=4, multi_task=OPTIMISATION, few_shot=OPTIMISATION
    ),
    evaluation=ProtocolConfig(few_shot=FewShotConfig(episodes=2), horizon=20),
    cluster=ClusterConfig(rollout_actors=2),
)
SPACE: Space = {"guidance.weight": Range(0.1, 20.0, log=True), "diffusion.schedule": Choices(("vp", "cosine"))}
UNREPEATABLE = ("time/seconds", "time/evaluate_s", "run")


@pytest.fixture(scope="module")
def backbone(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    training = backbone_training(EXPERIMENT, small_dataset, EXPERIMENT.backbone)
    folder = tmp_path_factory.mktemp("backbone")
    episodes = small_dataset.read(small_dataset.family.train_tasks, "expert")
    train(training, training.learning_task(*make_resident(training, episodes, CPU), CPU), folder)
    return folder / "model"


def plan_of(folder: Path, dataset: Dataset, backbone: Path, space: Space = SPACE, **options: Any) -> SweepPlan:
    sweep = Sweep("tiny", EXPERIMENT, space, **options)
    tracker = prepare(f"sqlite:///{folder}/mlflow.db", "tiny")
    protocol = dataclasses.replace(EXPERIMENT.evaluation, prompts=3, episodes_per_prompt=1)
    validation = Validation(sweep.method, dataset, settings_of(protocol, 4), protocol, backbone)
    parent = tracker.run("tiny", "tiny", None, {"promptdiffuser.stage": "sweep"})
    return SweepPlan(
        Ledger(folder / "sweep", sweep), dataset, validation, backbone, EXPERIMENT.backbone, tracker, parent
    )


def repeatable(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in UNREPEATABLE} for row in rows]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_that_goes_on_ends_as_an_unbroken_one_and_can_be_extended(
    backbone: Path, small_dataset: Dataset, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"search": "tpe", "population": 2, "ahead": 2, "stopping": "asha", "score_every": 3}
    unbroken = plan_of(tmp_path / "unbroken", small_dataset, backbone, trials=4, **options)
    run_sweep(unbroken)
    rows = unbroken.ledger.rows()
    assert [row["trial"] for row in rows] == [f"trial-000{number}" for number in range(4)]
    assert {row["state"] for row in rows} == {"finished", "stopped"}
    for row in rows:
        assert row["validation/return_low"] <= row["validation/return"] <= row["validation/return_high"]
        assert row["cost/gradient_steps"] == (3 if row["state"] == "stopped" else 6)

    # What a killed driver leaves: one trial has ended, one has been trained to its first milestone, two are not there.
    broken = plan_of(tmp_path / "broken", small_dataset, backbone, trials=4, **options)
    for number in (0, 1):
        shutil.copytree(unbroken.ledger.trial_folder(number), broken.ledger.trial_folder(number))
    for name in ("result.json", "scores.json", "diffuser/checkpoints/step-00000006"):
        path = broken.ledger.trial_folder(1) / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    written = (broken.ledger.trial_folder(0) / "result.json").stat().st_mtime_ns
    run_sweep(broken)
    assert repeatable(broken.ledger.rows()) == repeatable(rows)
    assert (broken.ledger.trial_folder(0) / "result.json").stat().st_mtime_ns == written

    larger: Space = SPACE | {"diffusion.temperature": Range(0.5, 1.0)}
    extended = plan_of(tmp_path / "unbroken", small_dataset, backbone, larger, trials=5, **options)
    run_sweep(extended)
    old, new = extended.ledger.rows()[:4], extended.ledger.rows()[4]
    assert [row | {"diffusion.temperature": 1.0} for row in rows] == old
    assert 0.5 <= new["diffusion.temperature"] < 1.0
    client = MlflowClient(extended.tracker.uri)
    runs = client.search_runs([extended.tracker.experiment_id], "tags.`promptdiffuser.stage` = 'trial'")
    assert {run.info.run_id: run.info.run_name for run in runs} == {row["run"]: row["trial"] for row in [*old, new]}
    assert {run.info.status for run in runs} == {"FINISHED"}
    (run,) = [run for run in runs if run.info.run_id == new["run"]]
    assert run.data.metrics["validation/return"] == new["validation/return"]
    assert run.data.params["guidance.weight"] == str(new["guidance.weight"])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_members_of_a_population_take_over_weights_and_settings(
    backbone: Path, small_dataset: Dataset, tmp_path: Path
) -> None:
    space: Space = {
        "guidance.weight": Range(0.1, 20.0),
        "diffuser.multi_task.learning_rate": Range(1e-4, 1e-1, log=True),
    }
    options: dict[str, Any] = {"stopping": "population", "score_every": 2, "search": "random"}
    plan = plan_of(tmp_path, small_dataset, backbone, space, trials=4, population=4, **options)
    run_sweep(plan)
    settings = [
        [tuple(score[field] for field in space) for _, score in sorted(plan.ledger.scores(number).items())]
        for number in range(4)
    ]
    assert [len(of_member) for of_member in settings] == [3] * 4
    # One of four, a quarter, is exploited after each of the two milestones before the end.
    changes = [before != after for member in settings for before, after in itertools.pairwise(member)]
    assert sum(changes) == 2
    for row, of_member in zip(plan.ledger.rows(), settings, strict=True):
        assert tuple(row[field] for field in space) == of_member[-1]
    runs = MlflowClient(plan.tracker.uri).search_runs([plan.tracker.experiment_id])
    assert len(runs) == 5


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_training_that_diverges_is_a_result_and_few_shot_updates_count(
    backbone: Path, small_dataset: Dataset, tmp_path: Path
) -> None:
    space: Space = {"diffuser.multi_task.learning_rate": Choices((1e-3, 1e30))}
    plan = plan_of(tmp_path, small_dataset, backbone, space, method="prompt-diffuser-context")
    run_sweep(plan)
    by_rate = {row["diffuser.multi_task.learning_rate"]: row for row in plan.ledger.rows()}
    assert by_rate[1e30]["state"] == "diverged"
    assert by_rate[1e30]["validation/return"] is None
    assert plan.ledger.best() == by_rate[1e-3]
    few_shot = tmp_path / "sweep" / by_rate[1e-3]["trial"] / "adapted"
    assert {path.name for path in few_shot.iterdir()} == {f"task-{t}" for t in small_dataset.family.validation_tasks}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_trials_that_train_a_backbone_do_so_with_ray_train(
    backbone: Path, small_dataset: Dataset, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, small_dataset, backbone, {"backbone.prompt_length": Choices((2,))}, method="prompt-dt")
    run_sweep(plan)
    (row,) = plan.ledger.rows()
    assert row["state"] == "finished"
    document = json.loads((tmp_path / "sweep" / "trial-0000" / "backbone" / "model" / "model.json").read_text())
    assert document["config"]["prompt_length"] == 2


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_without_a_dashboard_is_refused_where_ray_train_runs_in_trials() -> None:
    with pytest.raises(UserError, match="dashboard"):
        connect(ClusterConfig(), dashboard=True)


def test_concurrency_is_what_the_cluster_has_room_for() -> None:
    plain = Sweep("tiny", EXPERIMENT, {"guidance.weight": Choices((1.0, 2.0))})
    assert concurrency_of(plain, {"CPU": 6}) == 4
    assert concurrency_of(dataclasses.replace(plain, concurrency=3), {"CPU": 6}) == 3
    assert concurrency_of(dataclasses.replace(plain, search="tpe", trials=9, ahead=2), {"CPU": 6}) == 2
    on_ray_train = Sweep("tiny", EXPERIMENT, {"backbone.layers": Choices((1, 2))}, method="prompt-dt")
    assert concurrency_of(on_ray_train, {"CPU": 7}) == 2
    for sweep in (dataclasses.replace(plain, concurrency=5), dataclasses.replace(on_ray_train, concurrency=3)):
        with pytest.raises(UserError, match="--concurrency"):
            concurrency_of(sweep, {"CPU": 6})
