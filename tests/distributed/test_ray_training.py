"""Ray Data and Ray Train around the engine: the same training for any number of workers, and after a worker's death."""

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import PromptPool, ResidentEpisodes
from promptdiffuser.distributed.datasets import EPISODES, POOL, ShardByEpisode, resident_shard, training_datasets
from promptdiffuser.distributed.training import TrainJob, train_few_shot, train_on_cluster
from promptdiffuser.experiment import ClusterConfig
from promptdiffuser.learning.backbone import BackboneLearning, BackboneLossConfig
from promptdiffuser.learning.checkpoint import load_checkpoint
from promptdiffuser.learning.engine import FlatParameters, OptimisationConfig, Share
from promptdiffuser.learning.trainings import BackboneTraining, make_resident, train
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.tracking.store import prepare

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
CPU = torch.device("cpu")
TASKS = (0, 1, 3, 5)


@pytest.fixture(scope="module")
def training(small_dataset: Dataset) -> BackboneTraining:
    return BackboneTraining(
        family="cheetah-vel",
        seed=0,
        backbone=BackboneConfig(width=16, layers=1, history=4, prompt_length=3, dropout=0.0),
        loss=BackboneLossConfig(batch_size=12, precision="fp32"),
        optimisation=OptimisationConfig(
            steps=12, learning_rate=1e-3, schedule="constant", clip_norm=1.0, checkpoint_every=4
        ),
        statistics=Normaliser.fit(small_dataset.parts(TASKS), 500.0).tensors(),
        dataset_digest=small_dataset.manifest.digest,
    )


@pytest.fixture(scope="module")
def plain_run(training: BackboneTraining, small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    episodes, pool = make_resident(training, small_dataset.read(TASKS), CPU)
    train(training, training.learning_task(episodes, pool, CPU), folder)
    return folder


@pytest.fixture(scope="module")
def plain_weights(plain_run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(plain_run / "model").tensors["weights"]


def losses(folder: Path) -> list[float]:
    progress = load_checkpoint(folder / "checkpoints" / "step-00000012").documents["progress"]
    return [entry["training/loss"] for entry in progress["history"]]


def weights_of_ray_run(
    training: BackboneTraining, dataset: Dataset, folder: Path, workers: int
) -> dict[str, torch.Tensor]:
    run = prepare(f"sqlite:///{folder}/mlflow.db", "test").run("test", "test", None, {})
    job = TrainJob(training, dataset, TASKS, "expert", folder, run)
    train_on_cluster(job, ClusterConfig(train_workers=workers))
    return load_checkpoint(folder / "model").tensors["weights"]


@pytest.mark.parametrize("workers", [1, 3])
def test_shards_hold_every_episode_once_and_pools_are_equal(
    training: BackboneTraining, small_dataset: Dataset, workers: int
) -> None:
    datasets = training_datasets(small_dataset, TASKS, "expert", training)
    split = {name: ShardByEpisode().configure({name: datasets[name]}, workers) for name in (EPISODES, POOL)}
    shards = [
        resident_shard(training, CPU, episodes[EPISODES], pool[POOL])
        for episodes, pool in zip(split[EPISODES], split[POOL], strict=True)
    ]
    whole, pool = make_resident(training, small_dataset.read(TASKS), CPU)
    held = np.stack([(episodes.row_of >= 0).numpy() for episodes, _ in shards])
    assert (held.sum(axis=0) == 1).all()
    assert held.sum(axis=1).max() - held.sum(axis=1).min() <= 1
    for episodes, shard_pool in shards:
        for number in np.flatnonzero((episodes.row_of >= 0).numpy()):
            torch.testing.assert_close(episodes.states[episodes.row_of[number]], whole.states[number], rtol=0, atol=0)
        torch.testing.assert_close(shard_pool.transitions, pool.transitions, rtol=0, atol=0)
        np.testing.assert_array_equal(shard_pool.index.tasks, pool.index.tasks)


def test_two_workers_train_what_a_plain_loop_trains(
    training: BackboneTraining,
    small_dataset: Dataset,
    plain_run: Path,
    plain_weights: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    weights = weights_of_ray_run(training, small_dataset, tmp_path, workers=2)
    # Sums over two workers differ in the last bit, and Adam divides tiny gradients by their own size: parameters whose
    # true gradient is zero, such as the keys' biases, go where rounding sends them. All others stay where they were.
    moved = torch.cat([(weights[name] - value).flatten() for name, value in plain_weights.items()])
    assert moved.norm() < 1e-2 * torch.cat([value.flatten() for value in plain_weights.values()]).norm()
    assert moved.abs().median() < 1e-4
    np.testing.assert_allclose(losses(tmp_path), losses(plain_run), rtol=1e-4)


class DyingLearning(BackboneLearning):
    """Ends its process at step 6 unless the marker says that it has died before."""

    marker: Path

    def share(self, parameters: FlatParameters, step: int) -> Share:
        if step == 6 and not self.marker.exists():
            self.marker.touch()
            os._exit(1)
        return super().share(parameters, step)


@dataclass(frozen=True)
class DyingTraining(BackboneTraining):
    marker: Path = Path()

    def learning_task(self, episodes: ResidentEpisodes, pool: PromptPool, device: torch.device) -> DyingLearning:
        task = super().learning_task(episodes, pool, device)
        task.__class__ = DyingLearning
        task.marker = self.marker
        return task


def test_a_killed_worker_changes_nothing_and_no_metric_is_logged_twice(
    training: BackboneTraining, small_dataset: Dataset, plain_weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    fields = {field.name: getattr(training, field.name) for field in dataclasses.fields(training)}
    dying = DyingTraining(**fields, marker=tmp_path / "died")
    weights = weights_of_ray_run(dying, small_dataset, tmp_path, workers=1)
    assert (tmp_path / "died").exists()
    for name, value in plain_weights.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=0)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("test")
    (run,) = client.search_runs([experiment.experiment_id])
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "training/loss")]
    assert steps == sorted(set(steps))
    assert steps[-1] == training.optimisation.steps


def test_training_reads_the_quality_that_it_is_told(training: BackboneTraining, small_dataset: Dataset) -> None:
    datasets = training_datasets(small_dataset, TASKS, "random", training)
    rows = datasets[EPISODES].take_all()
    assert sorted(int(row["seed"]) for row in rows) == sorted(small_dataset.read(TASKS, "random").seeds.tolist())
    assert {bool(row["success"]) for row in rows} == {False}


def test_few_shot_trainings_learn_from_the_few_shot_sets_alone(
    training: BackboneTraining, small_dataset: Dataset, tmp_path: Path
) -> None:
    """Any training will do: what it ends with tells which episodes it saw."""
    tracker, finished = prepare(f"sqlite:///{tmp_path}/mlflow.db", "test"), []
    few_shot = FewShotConfig(episodes=2, returns="high")
    jobs = [
        TrainJob(
            training,
            small_dataset,
            (task,),
            few_shot.quality,
            tmp_path / str(task),
            tracker.run(str(task), str(task), None, {}),
        )
        for task in (2, 7)
    ]
    train_few_shot(jobs, few_shot, lambda job: finished.append(job.tasks))
    assert sorted(finished) == [(2,), (7,)]
    for (task,) in finished:
        episodes = few_shot.choose(small_dataset.read([task]))
        assert len(episodes) == 2
        resident, pool = make_resident(training, episodes, CPU)
        train(training, training.learning_task(resident, pool, CPU), tmp_path / "plain" / str(task))
        expected, made = (
            load_checkpoint(folder / str(task) / "model").tensors["weights"]
            for folder in (tmp_path / "plain", tmp_path)
        )
        for name, value in expected.items():
            torch.testing.assert_close(made[name], value, rtol=0, atol=0)
