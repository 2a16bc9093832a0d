"""Ray Data and Ray Train around the engine: the same training for any number of workers, and after their deaths."""

import dataclasses
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import pytest
import ray
import torch
from mlflow import MlflowClient

from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.plans import Rounds, RoundsConfig
from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import PromptPool, WindowSource
from promptdiffuser.distributed import training as ray_training
from promptdiffuser.distributed.datasets import EPISODES, POOL, ShardByEpisode, resident_shard, training_datasets
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.distributed.training import TrainJob, train_many, train_on_cluster
from promptdiffuser.distributed.validation import Validation
from promptdiffuser.errors import UserError
from promptdiffuser.experiment import ClusterConfig
from promptdiffuser.rollout.protocol import ProtocolConfig
from promptdiffuser.tracking.store import prepare
from promptdiffuser.training.backbone_objective import BackboneLearning
from promptdiffuser.training.checkpoint import load_checkpoint
from promptdiffuser.training.engine import LocalGradients, NonFiniteGradientError
from promptdiffuser.training.trainings import BackboneTraining, make_resident, train
from tests.distributed.small_training import TASKS, settings_of, small_training

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def training(small_dataset: Dataset) -> BackboneTraining:
    return small_training(small_dataset, RoundsConfig())


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
    return [entry["train/loss"] for entry in progress["history"]]


def weights_of_ray_run(
    training: BackboneTraining,
    dataset: Dataset,
    folder: Path,
    cluster: ClusterConfig,
    validation: Validation | None = None,
) -> dict[str, torch.Tensor]:
    run = prepare(f"sqlite:///{folder}/mlflow.db", "test").run("test", "test", None, {})
    train_on_cluster(TrainJob(training, dataset, TASKS, "expert", folder, run), cluster, validation)
    return load_checkpoint(folder / "model").tensors["weights"]


def logged_steps(folder: Path, metric: str) -> list[int]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("test").experiment_id])
    return [point.step for point in client.get_metric_history(run.info.run_id, metric)]


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


@pytest.mark.parametrize(("workers", "data"), [(2, "resident"), (3, "streaming")])
def test_several_workers_train_what_a_plain_loop_trains(
    training: BackboneTraining,
    small_dataset: Dataset,
    plain_run: Path,
    plain_weights: dict[str, torch.Tensor],
    tmp_path: Path,
    workers: int,
    data: Literal["resident", "streaming"],
) -> None:
    weights = weights_of_ray_run(training, small_dataset, tmp_path, ClusterConfig(train_workers=workers, data=data))
    # Sums over workers differ in the last bit, and Adam divides tiny gradients by their own size: parameters whose
    # true gradient is zero, such as the keys' biases, go where rounding sends them. All others stay where they were.
    moved = torch.cat([(weights[name] - value).flatten() for name, value in plain_weights.items()])
    assert moved.norm() < 1e-2 * torch.cat([value.flatten() for value in plain_weights.values()]).norm()
    assert moved.abs().median() < 1e-4
    np.testing.assert_allclose(losses(tmp_path), losses(plain_run), rtol=1e-4)


@dataclass(frozen=True)
class FatefulTraining(BackboneTraining):
    """A training with something that befalls its worker processes, once each; `marks` remembers what has happened."""

    marks: Path = Path()

    def befalls(self, event: str) -> bool:
        """Tell whether an event is still to happen, and note that it does."""
        mark = self.marks / event
        happens = not mark.exists()
        mark.touch()
        return happens

    def learning_task(self, windows: WindowSource, pool: PromptPool, device: torch.device) -> BackboneLearning:
        task = super().learning_task(windows, pool, device)
        local_gradients = task.local_gradients
        task.local_gradients = lambda parameters, step: self.at_update(step, local_gradients(parameters, step))
        return task

    def at_update(self, step: int, gradients: LocalGradients) -> LocalGradients:
        return gradients


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@dataclass(frozen=True)
class DyingTraining(FatefulTraining):
    """Its worker is killed between two checkpoints, while it writes one, before it reports it, and after it has."""

    def at_update(self, step: int, gradients: LocalGradients) -> LocalGradients:
        from promptdiffuser.tracking.store import RunLog
        from promptdiffuser.training import checkpoint

        if step == 2 and self.befalls("between reports"):
            die()
        if step == 3 and self.befalls("while writing"):  # the files are there, the manifest and the name are not
            checkpoint._sha256 = lambda path: die()
        if step == 7 and self.befalls("before a report"):
            log_history = RunLog.log_history
            RunLog.log_history = lambda run, history: (log_history(run, history), die())
        if step == 8 and self.befalls("after a report"):
            die()
        return gradients


def test_killed_workers_change_nothing_and_no_metric_is_logged_twice(
    training: BackboneTraining,
    small_dataset: Dataset,
    plain_weights: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_training, "WORKER_FAILURES", 4)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    (tmp_path / "marks").mkdir()
    dying = DyingTraining(**vars(training), marks=tmp_path / "marks")
    weights = weights_of_ray_run(dying, small_dataset, tmp_path, ClusterConfig())
    assert len(list((tmp_path / "marks").iterdir())) == 4
    for name, value in plain_weights.items():
        assert torch.equal(weights[name], value), name
    steps = logged_steps(tmp_path, "train/loss")
    assert steps == sorted(set(steps))
    assert steps[-1] == training.optimisation.steps


@dataclass(frozen=True)
class InfiniteTraining(FatefulTraining):
    """Its gradient overflows at update 5."""

    def at_update(self, step: int, gradients: LocalGradients) -> LocalGradients:
        if step == 5:
            assert self.befalls("infinite"), "the training was tried again"
            return LocalGradients(gradients.gradients_GP * torch.inf, gradients.scalars)
        return gradients


def test_a_gradient_that_is_not_finite_ends_the_training_at_once_and_names_the_batch(
    training: BackboneTraining, small_dataset: Dataset, tmp_path: Path
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    infinite = InfiniteTraining(**vars(training), marks=tmp_path)
    with pytest.raises(NonFiniteGradientError, match=r"step 5 .* address 0/pretrain/5"):
        weights_of_ray_run(infinite, small_dataset, tmp_path, ClusterConfig())
    assert load_checkpoint(tmp_path / "checkpoints" / "step-00000004")


def test_snapshots_are_scored_beside_an_elastic_training_and_the_best_is_used(
    training: BackboneTraining, small_dataset: Dataset, plain_run: Path, tmp_path: Path
) -> None:
    optimisation = dataclasses.replace(training.optimisation, snapshot_every=4, use="best")
    protocol = ProtocolConfig(prompts=1, episodes_per_prompt=1, few_shot=FewShotConfig(episodes=2))
    validation = Validation("prompt-dt", small_dataset, settings_of(protocol), protocol)
    weights = weights_of_ray_run(
        dataclasses.replace(training, optimisation=optimisation),
        small_dataset,
        tmp_path,
        ClusterConfig(train_workers=1, max_train_workers=2),
        validation,
    )
    np.testing.assert_allclose(losses(tmp_path), losses(plain_run), rtol=1e-4)
    scores = json.loads((tmp_path / "snapshots" / "scores.json").read_text())
    assert list(scores) == ["step-00000004", "step-00000008", "step-00000012"]
    best = max(scores, key=lambda step: scores[step]["normalised"])
    assert [path.name for path in tmp_path.glob("snapshots/step-*")] == [best]
    for name, value in load_checkpoint(tmp_path / "snapshots" / best).tensors["weights"].items():
        assert torch.equal(weights[name], value)
    assert logged_steps(tmp_path, "validation/return") == [4, 8, 12]
    # Scored again, by itself, it gets the same score.
    pool = RolloutPool("cheetah-vel", 1)
    assert validation.score(tmp_path / "model", pool)["mean"] == scores[best]["mean"]
    pool.close()


def test_a_snapshot_that_cannot_be_scored_is_said_at_once_and_loses_neither_training_nor_actors(
    training: BackboneTraining,
    small_dataset: Dataset,
    plain_weights: dict[str, torch.Tensor],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    optimisation = dataclasses.replace(training.optimisation, snapshot_every=4)
    # The few-shot sets are larger than what the dataset holds.
    protocol = ProtocolConfig(prompts=1, episodes_per_prompt=1, few_shot=FewShotConfig(episodes=100))
    validation = Validation("prompt-dt", small_dataset, settings_of(protocol), protocol)
    before = ray.available_resources()["CPU"]
    with pytest.raises(UserError, match=r"snapshot .*step-00000004 cannot be scored .*a few-shot set needs 100"):
        weights_of_ray_run(
            dataclasses.replace(training, optimisation=optimisation),
            small_dataset,
            tmp_path,
            ClusterConfig(),
            validation,
        )
    (warning,) = (message for message in caplog.messages if "cannot be scored" in message)
    assert "step-00000004" in warning
    assert "the training goes on" in warning
    for name, value in load_checkpoint(tmp_path / "model").tensors["weights"].items():
        torch.testing.assert_close(value, plain_weights[name], rtol=1e-4, atol=1e-6)
    assert len(list(tmp_path.glob("snapshots/step-*"))) == 3, "an unscored snapshot was deleted"
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] >= before, "the rollout actors are still there"


def test_workers_get_the_shares_of_cpus_and_gpus_that_they_are_told() -> None:
    scaling = ray_training.scaling(ClusterConfig(train_workers=2, cpus_per_worker=3, gpus_per_worker=0.25))
    assert (scaling.num_workers, scaling.use_gpu) == (2, True)
    assert scaling.resources_per_worker == {"CPU": 3, "GPU": 0.25}
    assert ray_training.scaling(ClusterConfig(train_workers=2, max_train_workers=8)).num_workers == (2, 8)


def test_training_reads_the_quality_that_it_is_told(training: BackboneTraining, small_dataset: Dataset) -> None:
    datasets = training_datasets(small_dataset, TASKS, "random", training)
    rows = datasets[EPISODES].take_all()
    assert sorted(int(row["seed"]) for row in rows) == sorted(small_dataset.read(TASKS, "random").seeds.tolist())
    assert {bool(row["success"]) for row in rows} == {False}


def test_trainings_apart_are_the_plain_ones(training: BackboneTraining, small_dataset: Dataset, tmp_path: Path) -> None:
    training = dataclasses.replace(training, rounds=Rounds())
    tracker = prepare(f"sqlite:///{tmp_path}/mlflow.db", "test")
    jobs = [
        TrainJob(
            training,
            small_dataset,
            (task,),
            "random",
            tmp_path / str(task),
            tracker.run(str(task), str(task), None, {}),
        )
        for task in (2, 7)
    ]
    assert sorted(job.tasks for job in train_many(jobs)) == [(2,), (7,)]
    for task in (2, 7):
        resident, pool = make_resident(training, small_dataset.read([task], "random"), CPU)
        train(training, training.learning_task(resident, pool, CPU), tmp_path / "plain" / str(task))
        expected, made = (
            load_checkpoint(folder / str(task) / "model").tensors["weights"]
            for folder in (tmp_path / "plain", tmp_path)
        )
        for name, value in expected.items():
            torch.testing.assert_close(made[name], value, rtol=0, atol=0)
