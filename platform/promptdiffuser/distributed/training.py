"""Ray Train around the training engine, and few-shot trainings as plain Ray tasks."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from torch import Tensor

from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.storage import Storage
from promptdiffuser.data.store import open_dataset
from promptdiffuser.distributed.datasets import EPISODES, POOL, ShardByEpisode, resident_shard, training_datasets
from promptdiffuser.distributed.tasks import run_tasks
from promptdiffuser.experiment import ClusterConfig
from promptdiffuser.learning.trainings import History, Training, make_resident, train
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.tracking.store import RunLog

WORKER_FAILURES = 3
"""Restarts of the worker group before a training fails; each resumes from the newest valid checkpoint."""


@dataclass(frozen=True)
class TrainJob:
    """One training and where it reads and writes; all paths are absolute, because Train workers change folder."""

    training: Training
    storage: Storage
    tasks: tuple[int, ...]
    quality: Quality
    folder: Path
    run: RunLog


def train_on_cluster(job: TrainJob, cluster: ClusterConfig) -> None:
    """Run a training on Ray Train workers fed by Ray Data; the model is then in `job.folder`/model.

    Resuming needs nothing but the same folder: the workers look for checkpoints there themselves, because Ray would
    retry a broken newest checkpoint for ever.
    """
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(num_workers=cluster.train_workers, use_gpu=cluster.use_gpu),
        run_config=RunConfig(
            name="ray-train", storage_path=str(job.folder), failure_config=FailureConfig(max_failures=WORKER_FAILURES)
        ),
        datasets={**training_datasets(open_dataset(job.storage), job.tasks, job.quality, job.training)},
        dataset_config=ShardByEpisode(),
    )
    _fit_interruptibly(trainer)


def _fit_interruptibly(trainer: TorchTrainer) -> None:
    """Run `fit` beside the main thread, where Ctrl-C stays a KeyboardInterrupt.

    In the main thread Ray Train replaces the process's handler of Ctrl-C, for later stages too, by one that exits.
    """
    outcome: Future[None] = Future()

    def fit() -> None:
        try:
            trainer.fit()
            outcome.set_result(None)
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=fit, daemon=True).start()
    outcome.result()


def _train_worker(config: dict[str, Any]) -> None:
    job: TrainJob = config["job"]
    device, context = get_device(), ray.train.get_context()
    episodes, pool = resident_shard(
        job.training, device, ray.train.get_dataset_shard(EPISODES), ray.train.get_dataset_shard(POOL)
    )
    is_writer = context.get_world_rank() == 0

    def on_checkpoint(history: History) -> None:
        if is_writer:
            job.run.log_history(history)
        # A barrier: no worker runs ahead of the checkpoint that the writer has just made.
        ray.train.report(history[-1])

    train(
        job.training,
        job.training.learning_task(episodes, pool, device),
        job.folder,
        sum_over_workers=_sum_over_workers,
        is_writer=is_writer,
        on_checkpoint=on_checkpoint,
    )


def _sum_over_workers(vector: Tensor) -> Tensor:
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(vector)
    return vector


def train_few_shot(jobs: list[TrainJob], few_shot: FewShotConfig, on_finished: Callable[[TrainJob], None]) -> None:
    """Run small trainings, each on the few-shot set of its tasks, as one Ray task each.

    Starting Ray Train takes longer than such a training.
    """
    for job, _ in run_tasks(partial(_train_few_shot, few_shot), jobs):
        on_finished(job)


def _train_few_shot(few_shot: FewShotConfig, job: TrainJob) -> None:
    device = torch.device("cpu")
    resident, pool = make_resident(job.training, open_dataset(job.storage).few_shot(job.tasks, few_shot), device)
    task = job.training.learning_task(resident, pool, device)
    train(job.training, task, job.folder, on_checkpoint=job.run.log_history)
