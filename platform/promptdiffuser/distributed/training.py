"""Ray Train around the training engine, and small trainings as plain Ray tasks."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from torch import Tensor

from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import PromptPool, WindowSource
from promptdiffuser.distributed.datasets import (
    EPISODES,
    POOL,
    ShardByEpisode,
    prompt_pool,
    resident_shard,
    share_of,
    training_datasets,
)
from promptdiffuser.distributed.streaming import StreamedWindows, WindowCutter
from promptdiffuser.distributed.tasks import run_tasks, task_device
from promptdiffuser.distributed.validation import NORMALISED, Validation, validating
from promptdiffuser.errors import UserError
from promptdiffuser.experiment import ClusterConfig
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.tracking.store import RunLog
from promptdiffuser.training.engine import NonFiniteGradientError
from promptdiffuser.training.snapshots import use_best_snapshot
from promptdiffuser.training.trainings import History, Training, make_resident, train

WORKER_FAILURES = 3
"""Restarts of the worker group before a training fails; each resumes from the newest valid checkpoint."""


@dataclass(frozen=True)
class TrainJob:
    """One training and where it reads and writes; all paths are absolute, because Train workers change folder."""

    training: Training
    dataset: Dataset
    tasks: tuple[int, ...]
    quality: Quality
    folder: Path
    run: RunLog


def train_on_cluster(
    job: TrainJob, cluster: ClusterConfig, validation: Validation | None = None, until: int | None = None
) -> None:
    """Run a training on Ray Train workers fed by Ray Data; the model is then in `job.folder`/model.

    Resuming needs nothing but the same folder: the workers look for checkpoints there themselves, because Ray would
    retry a broken newest checkpoint for ever.

    Args:
        job: The training.
        cluster: What it takes of the cluster.
        validation: How its snapshots are scored, if it takes any.
        until: Update after which it pauses; called again, it goes on.

    Raises:
        NonFiniteGradientError: An update has no finite gradient; training again would meet the same one.
    """
    datasets = training_datasets(job.dataset, job.tasks, job.quality, job.training, resident=cluster.data == "resident")
    train_worker: Any = _train_worker
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "cluster": cluster, "until": until},
        torch_config=process_group(cluster),
        scaling_config=scaling(cluster),
        run_config=RunConfig(
            name="ray-train", storage_path=str(job.folder), failure_config=FailureConfig(max_failures=WORKER_FAILURES)
        ),
        datasets={**datasets},
        dataset_config=ShardByEpisode(datasets),
    )
    config = job.training.optimisation
    with nullcontext() if validation is None else validating(job.folder, validation, cluster, job.run):
        _fit_interruptibly(trainer)
    if config.use == "best":
        use_best_snapshot(job.folder, NORMALISED)


def scaling(cluster: ClusterConfig) -> ScalingConfig:
    """Return how many workers of which size Ray Train starts."""
    num_workers: Any = cluster.train_workers
    if cluster.max_train_workers:
        num_workers = (cluster.train_workers, cluster.max_train_workers)
    return ScalingConfig(
        num_workers=num_workers,
        use_gpu=cluster.gpus_per_worker > 0,
        resources_per_worker={"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker},
    )


def process_group(cluster: ClusterConfig) -> TorchConfig:
    """Return how the workers sum their gradients: NCCL refuses two on one GPU, where Ray puts them if it can."""
    return TorchConfig(backend="nccl" if cluster.gpus_per_worker >= 1 else "gloo")


def _fit_interruptibly(trainer: TorchTrainer) -> None:
    """Run `fit` beside the main thread, where Ctrl-C stays a KeyboardInterrupt.

    In the main thread Ray Train replaces the process's handler of Ctrl-C, for later stages too, by one that exits.
    """
    outcome: Future[Any] = Future()

    def fit() -> None:
        try:
            result: Any = trainer.fit()
            outcome.set_result(result.return_value)
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=fit, daemon=True).start()
    try:
        error = outcome.result()
    except WorkerGroupError as failed:
        # Ray's own message is the workers' tracebacks; only the writer among them meets a full disk.
        for cause in failed.worker_failures.values():
            if isinstance(cause, UserError):
                raise cause from failed
        raise
    if isinstance(error, NonFiniteGradientError):
        raise error


def _train_worker(config: dict[str, Any]) -> NonFiniteGradientError | None:
    """Train; an error that every worker meets at the same update is returned, as Ray would try a raised one again."""
    cluster: ClusterConfig = config["cluster"]
    torch.set_num_threads(cluster.cpus_per_worker)
    try:
        _train(config["job"], cluster, config["until"])
    except NonFiniteGradientError as error:
        return error
    return None


def _train(job: TrainJob, cluster: ClusterConfig, until: int | None) -> None:
    device, context = get_device(), ray.train.get_context()
    if cluster.data == "resident":
        windows, pool = _resident(job, device)
    else:
        windows, pool = _streamed(job, device, elastic=cluster.max_train_workers > 0)
    is_writer = context.get_world_rank() == 0

    def on_checkpoint(history: History) -> None:
        if is_writer:
            job.run.log_history(history)
        # A barrier: no worker runs ahead of the checkpoint that the writer has just made.
        ray.train.report(history[-1])

    train(
        job.training,
        job.training.learning_task(windows, pool, device),
        job.folder,
        sum_over_workers=_sum_over_workers,
        is_writer=is_writer,
        on_checkpoint=on_checkpoint,
        until=until,
    )


def _resident(job: TrainJob, device: torch.device) -> tuple[WindowSource, PromptPool]:
    episodes, pool = ray.train.get_dataset_shard(EPISODES), ray.train.get_dataset_shard(POOL)
    return resident_shard(job.training, device, episodes, pool)


def _streamed(job: TrainJob, device: torch.device, elastic: bool) -> tuple[WindowSource, PromptPool]:
    pool, context = prompt_pool(job.training, device, ray.train.get_dataset_shard(POOL)), ray.train.get_context()
    count, rank, size = len(pool.index), context.get_world_rank(), context.get_world_size()
    cutter = WindowCutter(
        job.dataset.storage,
        tuple((name, record.task) for name, record in job.dataset.files(job.tasks, job.quality)),
        job.training.planner(pool.index),
        job.training.normaliser(),
        share_of(count, rank, size),
    )
    action_dim = job.dataset.manifest.action_dim
    return StreamedWindows(cutter, job.training.optimisation.steps, action_dim, device, elastic=elastic), pool


def _sum_over_workers(vector: Tensor) -> Tensor:
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(vector)
    return vector


def train_many(jobs: Sequence[TrainJob], num_gpus: float = 0.0) -> Iterator[TrainJob]:
    """Run small trainings as one Ray task each, a worker takes many in turn; yield them as they finish.

    Starting Ray Train takes longer than such a training. `num_gpus` is the share of a GPU that each takes.
    """
    for job, _ in run_tasks(train_in_process, jobs, num_gpus):
        yield job


def train_in_process(job: TrainJob, until: int | None = None) -> None:
    """Train in this process, on a GPU if Ray gave it one; with `until` pause after that update."""
    device = task_device()
    resident, pool = make_resident(job.training, job.dataset.read(job.tasks, job.quality), device)
    task = job.training.learning_task(resident, pool, device)
    train(job.training, task, job.folder, on_checkpoint=job.run.log_history, until=until)
