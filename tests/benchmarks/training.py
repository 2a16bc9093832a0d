"""Pre-training of the backbone at the public size: batches, number formats, the straightforward way, and Ray."""

import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median

import ray
import torch

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.plans import Rounds
from promptdiffuser.data.store import Dataset, DatasetWriter
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.training import TrainJob, train_on_cluster
from promptdiffuser.evaluation.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.experiment import ClusterConfig
from promptdiffuser.learning.backbone import BackboneLossConfig
from promptdiffuser.learning.checkpoint import newest_valid_checkpoint
from promptdiffuser.learning.engine import Engine, OptimisationConfig, alone
from promptdiffuser.learning.trainings import BackboneTraining, History, make_resident, train
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import RandomPolicy
from promptdiffuser.tracking.store import prepare
from tests.benchmarks.entry import Ratio, Value
from tests.benchmarks.straightforward import StraightforwardBackbone, StraightforwardTraining

COMMAND = "python -m tests.benchmarks training"
FAMILY = get_family("cheetah-vel")
CPU = torch.device("cpu")
BATCH = 256
THREADS = 2
WARM_UP, ROUNDS = 3, 12
STEPS, CHECKPOINT_EVERY = 120, 40
"""Of the trainings with and without Ray, at the quickstart's batch of 64."""

_advance: Callable[[], object]
_build_batch: Callable[[], None]
"""Of this process, made by `_prepare`."""


def run() -> list[Value | Ratio]:
    """Measure everything on the same random-policy episodes of the real simulator."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        dataset = _collect(Path(folder) / "dataset")
        training = _training(dataset)
        return [*_updates(training, dataset), *_with_and_without_ray(training, dataset, Path(folder))]


def _collect(folder: Path) -> Dataset:
    requests = [EpisodeRequest(task, seed) for task in FAMILY.train_tasks for seed in range(4)]
    writer = DatasetWriter(folder, FAMILY, COMMAND)
    writer.add("random", EpisodeStepper(FAMILY).run(requests, RandomPolicy(FAMILY, [r.seed for r in requests])))
    return writer.commit()


def _training(dataset: Dataset) -> BackboneTraining:
    return BackboneTraining(
        family=FAMILY.name,
        seed=0,
        backbone=BackboneConfig(dropout=0.0),
        loss=BackboneLossConfig(BATCH),
        optimisation=OptimisationConfig(steps=STEPS, checkpoint_every=CHECKPOINT_EVERY),
        statistics=Normaliser.fit(dataset.parts(FAMILY.train_tasks, "random"), FAMILY.return_scale).tensors(),
        dataset_digest=dataset.manifest.digest,
        rounds=Rounds(file_episodes=tuple(r.episodes for _, r in dataset.files(FAMILY.train_tasks, "random"))),
    )


def _updates(training: BackboneTraining, dataset: Dataset) -> list[Ratio | Value]:
    """Compare single updates, taken in turn so that a busy machine slows all of them alike.

    Each kind of update has a process of its own: what one does to the memory allocator must not help another.
    """
    kinds = ("eager", "compiled", "fp32", "straightforward")
    processes = {
        kind: ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare, (kind, training, dataset))
        for kind in kinds
    }
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(WARM_UP + ROUNDS):
        for kind, process in processes.items():
            seconds, batch_seconds = process.submit(_timed_update).result()
            if number >= WARM_UP:
                taken[kind].append(seconds)
                if kind == "eager":
                    taken.setdefault("batch", []).append(batch_seconds)
    for process in processes.values():
        process.shutdown()
    rates = {kind: BATCH / median(seconds) for kind, seconds in taken.items()}

    def ratio(name: str, ours: str, other: str, other_is: str) -> Ratio:
        return Ratio(name, rates[ours] / rates[other], rates[ours], rates[other], "windows/s", other_is, COMMAND)

    return [
        ratio("train.over_straightforward", "compiled", "straightforward", "straightforward (ours compiled)"),
        ratio("train.eager_over_straightforward", "eager", "straightforward", "straightforward"),
        ratio("train.bf16_over_fp32", "eager", "fp32", "fp32"),
        Value("train.batch_share", rates["eager"] / rates["batch"], "of an update", COMMAND),
    ]


def _prepare(kind: str, training: BackboneTraining, dataset: Dataset) -> None:
    """Make what this process updates, and what it does to build a batch alone."""
    global _advance, _build_batch
    torch.set_num_threads(THREADS)
    resident, pool = make_resident(training, dataset.read(FAMILY.train_tasks, "random"), CPU)
    planner, steps = training.planner(pool.index), itertools.count()
    if kind == "straightforward":
        model = StraightforwardBackbone(training.backbone, FAMILY.observation_dim, FAMILY.action_dim, FAMILY.horizon)
        _advance = StraightforwardTraining(model, resident, pool, planner).advance
    else:
        loss = BackboneLossConfig(BATCH, "fp32" if kind == "fp32" else "bf16", compile=kind == "compiled")
        task = replace(training, loss=loss).learning_task(resident, pool, CPU)
        _advance = Engine(task, training.optimisation, alone).advance

    def build_batch() -> None:
        step = next(steps)
        plan = planner.at(step)
        resident.windows(step, plan)
        pool.prompts_at(plan.prompt_episodes)

    _build_batch = build_batch


def _timed_update() -> tuple[float, float]:
    """Return the seconds of an update and of building a batch."""
    started = time.perf_counter()
    _advance()
    updated = time.perf_counter()
    _build_batch()
    return updated - started, time.perf_counter() - updated


def _with_and_without_ray(training: BackboneTraining, dataset: Dataset, folder: Path) -> list[Ratio | Value]:
    training = replace(training, loss=BackboneLossConfig(64))
    episodes = dataset.read(FAMILY.train_tasks, "random")

    def plain(name: str) -> History:
        return train(training, training.learning_task(*make_resident(training, episodes, CPU), CPU), folder / name)

    def on_ray(name: str, cluster: ClusterConfig) -> tuple[float, float]:
        tracked = prepare(f"sqlite:///{folder}/mlflow.db", "bench").run(name, name, None, {})
        started = time.perf_counter()
        train_on_cluster(TrainJob(training, dataset, FAMILY.train_tasks, "random", folder / name, tracked), cluster)
        seconds = time.perf_counter() - started
        history = newest_valid_checkpoint(folder / name / "checkpoints").documents["progress"]["history"]
        return _steady_rate(history), seconds - sum(entry["time/seconds"] for entry in history)

    cluster = ClusterConfig(cpus_per_worker=THREADS)
    connect(cluster)
    before = _steady_rate(plain("plain-before"))
    resident, start_up = on_ray("resident", cluster)
    after = _steady_rate(plain("plain-after"))
    streaming, _ = on_ray("streaming", replace(cluster, data="streaming"))
    again, _ = on_ray("resident-again", cluster)
    ray.shutdown()
    alone_rate = (before + after) / 2
    both = (resident + again) / 2
    return [
        Ratio("train.ray_over_plain", resident / alone_rate, resident, alone_rate, "updates/s", "no Ray", COMMAND),
        Ratio("train.streaming_over_resident", streaming / both, streaming, both, "updates/s", "resident", COMMAND),
        Value("train.ray_start_up", start_up, "s", COMMAND),
    ]


def _steady_rate(history: History) -> float:
    """Return updates a second: the median over the logged intervals after the first, which warms up."""
    return median(entry["time/steps_per_second"] for entry in history[1:])
