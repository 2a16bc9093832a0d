"""Pre-training of the backbone at the public size: batches, number formats, the straightforward way, and Ray."""

import tempfile
import time
from collections.abc import Callable
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
from promptdiffuser.learning.precision import Precision, best_precision
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
STEPS, CHECKPOINT_EVERY = 120, 40
"""Of the trainings with and without Ray, at the quickstart's batch of 64."""


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
    """Compare single updates, taken in turn so that a busy machine slows all of them alike."""
    resident, pool = make_resident(training, dataset.read(FAMILY.train_tasks, "random"), CPU)
    planner = training.planner(pool.index)

    def engine(precision: Precision) -> Engine:
        task = replace(training, loss=BackboneLossConfig(BATCH, precision)).learning_task(resident, pool, CPU)
        return Engine(task, training.optimisation, alone)

    def batch() -> None:
        plan = planner.at(0)
        resident.windows(0, plan)
        pool.prompts_at(plan.prompt_episodes)

    model = StraightforwardBackbone(training.backbone, FAMILY.observation_dim, FAMILY.action_dim, FAMILY.horizon)
    works: dict[str, Callable[[], object]] = {
        "ours": engine("bf16").advance,
        "straightforward": StraightforwardTraining(model, resident, pool, planner).advance,
        "fp32": engine("fp32").advance,
        "batch": batch,
    }
    seconds = _seconds_in_turn(works, rounds=12)
    rates = {name: BATCH / value for name, value in seconds.items()}
    return [
        Ratio(
            "train.over_straightforward",
            rates["ours"] / rates["straightforward"],
            rates["ours"],
            rates["straightforward"],
            "windows/s",
            f"the straightforward way, both in bf16 ({best_precision(CPU)} is what auto takes here)",
            COMMAND,
        ),
        Ratio(
            "train.bf16_over_fp32",
            rates["ours"] / rates["fp32"],
            rates["ours"],
            rates["fp32"],
            "windows/s",
            "fp32",
            COMMAND,
        ),
        Value("train.batch_share", seconds["batch"] / seconds["ours"], "of an update in bf16", COMMAND),
    ]


def _seconds_in_turn(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 2):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if number >= 2:  # the first ones warm up
                taken[name].append(time.perf_counter() - started)
    return {name: median(seconds) for name, seconds in taken.items()}


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
