"""Ray Tune trials scored by a shared pool of rollout actors."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import Dataset
from promptdiffuser.diffusion.process import DiffusionConfig
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.distributed.sweeps import Trial, run_trials
from promptdiffuser.distributed.training import TrainJob
from promptdiffuser.distributed.validation import Validation
from promptdiffuser.evaluation.protocol import ProtocolConfig
from promptdiffuser.learning.backbone import BackboneLossConfig
from promptdiffuser.learning.engine import OptimisationConfig
from promptdiffuser.learning.guidance import GuidanceConfig
from promptdiffuser.learning.trainings import BackboneTraining, DiffuserTraining, make_resident, train
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.models.denoiser import DenoiserConfig
from promptdiffuser.tracking.store import prepare
from tests.distributed.small_training import settings_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
CPU = torch.device("cpu")
TASKS = (0, 1)
OPTIMISATION = OptimisationConfig(steps=6, learning_rate=1e-3, schedule="constant", checkpoint_every=3)


@pytest.fixture(scope="module")
def backbone(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    training = BackboneTraining(
        family="cheetah-vel",
        seed=0,
        backbone=BackboneConfig(width=16, layers=1, history=4, prompt_length=3),
        loss=BackboneLossConfig(batch_size=8),
        optimisation=OPTIMISATION,
        statistics=Normaliser.fit(small_dataset.parts(TASKS), 500.0).tensors(),
        dataset_digest=small_dataset.manifest.digest,
    )
    train(training, training.learning_task(*make_resident(training, small_dataset.read(TASKS), CPU), CPU), folder)
    return folder / "model"


def make_trials(backbone: Path, dataset: Dataset, folder: Path, schedules: list[str]) -> list[Trial]:
    tracker = prepare(f"sqlite:///{folder}/mlflow.db", "sweep")
    training = DiffuserTraining(
        family="cheetah-vel",
        seed=0,
        stage="multi-task",
        backbone_folder=backbone,
        denoiser=DenoiserConfig(hidden=16),
        diffusion=DiffusionConfig(),
        guidance=GuidanceConfig(batch_size=4),
        with_context=True,
        batch_size=8,
        guidance_start=3,
        context_episodes=2,
        context_transitions=4,
        optimisation=OPTIMISATION,
        prompt_length=3,
        window_steps=4,
        dataset_digest=dataset.manifest.digest,
    )
    protocol = ProtocolConfig(prompts=2, episodes_per_prompt=1, few_shot=FewShotConfig(episodes=2))
    validation = Validation("prompt-diffuser-context", dataset, settings_of(protocol, 4), protocol, backbone)
    return [
        Trial(
            name=schedule,
            point={"schedule": schedule},
            job=TrainJob(
                dataclasses.replace(training, diffusion=DiffusionConfig(schedule=schedule)),
                dataset,
                TASKS,
                "expert",
                folder / schedule,
                tracker.run(schedule, schedule, None, {}),
            ),
            validation=validation,
        )
        for schedule in schedules
    ]


def test_a_sweep_scores_every_point_once_and_an_extended_one_only_the_new(
    backbone: Path, small_dataset: Dataset, tmp_path: Path
) -> None:
    pool = RolloutPool("cheetah-vel", 2)
    first = make_trials(backbone, small_dataset, tmp_path, ["vp", "cosine"])
    run_trials(first, pool, 2, tmp_path / "first")
    results = {trial.name: json.loads(trial.result_file.read_text()) for trial in first}
    assert all(result["ci_low"] <= result["mean"] <= result["ci_high"] < 0 for result in results.values())
    assert results["vp"]["mean"] != results["cosine"]["mean"]

    extended = make_trials(backbone, small_dataset, tmp_path, ["vp", "cosine", "linear"])
    written = {trial.name: trial.result_file.stat().st_mtime_ns for trial in first}
    run_trials(extended, pool, 2, tmp_path / "second")
    assert extended[2].result_file.is_file()
    assert {trial.name: trial.result_file.stat().st_mtime_ns for trial in extended[:2]} == written
    assert {trial.name: json.loads(trial.result_file.read_text()) for trial in extended[:2]} == results
    pool.close()
