"""A diffuser's multi-task training on Ray: its windows streamed, its snapshots scored beside it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.plans import Rounds, RoundsConfig
from promptdiffuser.data.store import Dataset
from promptdiffuser.diffusion.process import DiffusionConfig
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.distributed.training import TrainJob, train_on_cluster
from promptdiffuser.distributed.validation import Validation
from promptdiffuser.experiment import ClusterConfig
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.models.denoiser import DenoiserConfig
from promptdiffuser.rollout.protocol import ProtocolConfig
from promptdiffuser.tracking.store import prepare
from promptdiffuser.training.backbone_objective import BackboneLossConfig
from promptdiffuser.training.checkpoint import load_checkpoint
from promptdiffuser.training.engine import OptimisationConfig
from promptdiffuser.training.guidance import GuidanceConfig
from promptdiffuser.training.trainings import BackboneTraining, DiffuserTraining, make_resident, train
from tests.distributed.small_training import settings_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
CPU = torch.device("cpu")
TASKS = (0, 1, 3, 5)
CONTEXT_TRANSITIONS = 3
LAST = "step-00000012"


@pytest.fixture(scope="module")
def training(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> DiffuserTraining:
    """Return a training whose guidance, and so its stream of windows, begins in the middle of a round."""
    backbone = BackboneTraining(
        family="cheetah-vel",
        seed=0,
        backbone=BackboneConfig(width=16, layers=1, history=4, prompt_length=3, dropout=0.0),
        loss=BackboneLossConfig(batch_size=12, precision="fp32"),
        optimisation=OptimisationConfig(steps=12, learning_rate=1e-2, schedule="constant"),
        statistics=Normaliser.fit(small_dataset.parts(TASKS), 500.0).tensors(),
        dataset_digest=small_dataset.manifest.digest,
    )
    folder = tmp_path_factory.mktemp("backbone")
    train(backbone, backbone.learning_task(*make_resident(backbone, small_dataset.read(TASKS), CPU), CPU), folder)
    records = [record for _, record in small_dataset.files(TASKS)]
    return DiffuserTraining(
        family="cheetah-vel",
        seed=0,
        stage="multi-task",
        backbone_folder=folder / "model",
        denoiser=DenoiserConfig(hidden=16, depth=1, time_features=4, context_features=4, context_hidden=8),
        diffusion=DiffusionConfig(steps=3),
        guidance=GuidanceConfig(batch_size=8, precision="fp32"),
        with_context=True,
        batch_size=12,
        guidance_start=2,
        context_episodes=2,
        context_transitions=CONTEXT_TRANSITIONS,
        optimisation=OptimisationConfig(
            steps=12, learning_rate=1e-2, schedule="constant", average_decay=0.9, checkpoint_every=4
        ),
        prompt_length=3,
        window_steps=4,
        dataset_digest=small_dataset.manifest.digest,
        rounds=Rounds.over(RoundsConfig(env_steps=2 * max(record.steps for record in records), updates=3), records),
    )


def last_state(folder: Path) -> Mapping[str, Tensor]:
    """Return weights, their average and the optimizer's moments after the last update."""
    return load_checkpoint(folder / "checkpoints" / LAST).tensors["engine"]


def assert_same_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def test_a_streamed_diffuser_is_the_resident_one_and_its_best_snapshot_is_used(
    training: DiffuserTraining, small_dataset: Dataset, tmp_path: Path
) -> None:
    plain, streamed = tmp_path / "plain", tmp_path / "streamed"
    train(training, training.learning_task(*make_resident(training, small_dataset.read(TASKS), CPU), CPU), plain)
    optimisation = dataclasses.replace(training.optimisation, snapshot_every=4, use="best")
    protocol = ProtocolConfig(prompts=1, episodes_per_prompt=1, few_shot=FewShotConfig(episodes=2))
    settings = settings_of(protocol, CONTEXT_TRANSITIONS)
    validation = Validation("prompt-diffuser-context", small_dataset, settings, protocol, training.backbone_folder)
    streamed.mkdir()
    run = prepare(f"sqlite:///{streamed}/mlflow.db", "test").run("test", "test", None, {})
    scored = dataclasses.replace(training, optimisation=optimisation)
    job = TrainJob(scored, small_dataset, TASKS, "expert", streamed, run)
    train_on_cluster(job, ClusterConfig(data="streaming"), validation)
    assert_same_bits(last_state(streamed), last_state(plain))
    scores = json.loads((streamed / "snapshots" / "scores.json").read_text())
    assert list(scores) == ["step-00000004", "step-00000008", LAST]
    assert len({score["mean"] for score in scores.values()}) == 3
    best = max(scores, key=lambda step: scores[step]["normalised"])
    assert [path.name for path in streamed.glob("snapshots/step-*")] == [best]
    model = load_checkpoint(streamed / "model")
    for name, tensors in load_checkpoint(streamed / "snapshots" / best).tensors.items():
        assert_same_bits(model.tensors[name], tensors)
    # Scored again, by itself, it gets the same score.
    pool = RolloutPool("cheetah-vel", 1)
    assert validation.score(streamed / "model", pool)["mean"] == scores[best]["mean"]
    pool.close()
