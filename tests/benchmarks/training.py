"""Pre-training of the backbone at the public size: batches, number formats, the straightforward way, and Ray."""

import itertools
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import ray
import torch

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.plans import Rounds, RoundsConfig
from promptdiffuser.data.store import Dataset, DatasetWriter
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.training import TrainJob, train_on_cluster
from promptdiffuser.experiment import ClusterConfig
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.rollout.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import RandomPolicy
from promptdiffuser.tracking.store import prepare
from promptdiffuser.training.backbone_objective import BackboneLossConfig
from promptdiffuser.training.engine import Engine, OptimisationConfig, identity_reduce
from promptdiffuser.training.precision import Precision
from promptdiffuser.training.trainings import BackboneTraining, make_resident, train
from tests.benchmarks.entry import INFIX, Ratio, Value, cpu_formats
from tests.benchmarks.straightforward import StraightforwardBackbone, StraightforwardTraining

COMMAND = "python -m tests.benchmarks training"
FAMILY = get_family("cheetah-vel")
CPU = torch.device("cpu")
BATCH = 256
THREADS = 2
WARM_UP, ROUNDS = 3, 12
STEPS, CHECKPOINT_EVERY = 320, 40
"""Of the trainings with and without Ray, at the quickstart's batch of 64."""

_advance: Callable[[], object]
_build_batch: Callable[[], None]
"""Of this process, made by `_prepare`."""


def run() -> list[Value | Ratio]:
    """Measure everything on the same random-policy episodes of the real simulator."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        dataset = collect(Path(folder) / "dataset")
        training = backbone_training(dataset)
        return [*_updates(training, dataset), *_with_and_without_ray(training, dataset, Path(folder))]


def collect(folder: Path) -> Dataset:
    requests = [EpisodeRequest(task, seed) for task in FAMILY.train_tasks for seed in range(4)]
    writer = DatasetWriter(folder, FAMILY, COMMAND)
    writer.add("random", EpisodeStepper(FAMILY).run(requests, RandomPolicy(FAMILY)))
    return writer.commit()


def backbone_training(dataset: Dataset) -> BackboneTraining:
    return BackboneTraining(
        family=FAMILY.name,
        seed=0,
        backbone=BackboneConfig(dropout=0.0),
        loss=BackboneLossConfig(BATCH),
        optimisation=OptimisationConfig(steps=STEPS, checkpoint_every=CHECKPOINT_EVERY),
        statistics=Normaliser.fit(dataset.parts(FAMILY.train_tasks, "random"), FAMILY.return_scale).tensors(),
        dataset_digest=dataset.manifest.digest,
        rounds=Rounds.over(RoundsConfig(), (record for _, record in dataset.files(FAMILY.train_tasks, "random"))),
    )


def _updates(training: BackboneTraining, dataset: Dataset) -> list[Ratio | Value]:
    """Compare single updates, taken in turn so that a busy machine slows all of them alike.

    Each kind of update has a process of its own: what one does to the memory allocator must not help another.
    """
    best, *others = cpu_formats()
    infix, kinds = INFIX[best], ["eager", "compiled", "straightforward", *others]
    processes = {
        kind: ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare, (kind, best, training, dataset))
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
        ratio(f"train.{infix}over_straightforward", "compiled", "straightforward", "straightforward (ours compiled)"),
        ratio(f"train.eager_{infix}over_straightforward", "eager", "straightforward", "straightforward"),
        *(ratio(f"train.{best}_over_{other}", "eager", other, other) for other in others),
        Value(f"train.{infix}batch_share", rates["eager"] / rates["batch"], "of an update", COMMAND),
    ]


def _prepare(kind: str, best: Precision, training: BackboneTraining, dataset: Dataset) -> None:
    """Make what this process updates, and what it does to build a batch.

    Args:
        kind: eager or compiled, which use the best number format; the name of another format; straightforward.
        best: The number format that the hardware multiplies fastest.
        training: What is trained.
        dataset: What it learns from.
    """
    global _advance, _build_batch
    torch.set_num_threads(THREADS)
    resident, pool = make_resident(training, dataset.read(FAMILY.train_tasks, "random"), CPU)
    planner, steps = training.planner(pool.index), itertools.count()
    if kind == "straightforward":
        model = StraightforwardBackbone(training.backbone, FAMILY.observation_dim, FAMILY.action_dim, FAMILY.horizon)
        _advance = StraightforwardTraining(model, resident, pool, planner, best == "bf16").advance
    else:
        loss = BackboneLossConfig(BATCH, precision="fp32" if kind == "fp32" else best, compile=kind == "compiled")
        task = replace(training, loss=loss).learning_task(resident, pool, CPU)
        _advance = Engine(task, training.optimisation, identity_reduce).advance

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
    """Run the same training with Ray and without at the same time, on one core each.

    One after the other would compare the moods of a machine whose speed moves by a quarter from minute to minute.
    """
    training = replace(training, loss=BackboneLossConfig(64))
    endless = replace(training, optimisation=replace(training.optimisation, steps=100 * STEPS))
    connect(ClusterConfig())
    rates = {}
    for data in ("resident", "streaming"):
        plain = multiprocessing.get_context("spawn").Process(
            target=_train_plainly, args=(endless, dataset, folder / data / "plain")
        )
        plain.start()
        tracked = prepare(f"sqlite:///{folder}/mlflow.db", "bench").run(data, data, None, {})
        job = TrainJob(training, dataset, FAMILY.train_tasks, "random", folder / data / "ray", tracked)
        with _watching(folder / data) as rates[data]:
            started = time.perf_counter()
            train_on_cluster(job, ClusterConfig(data=data))
            seconds = time.perf_counter() - started
        plain.terminate()
        plain.join()
        note = json.loads((job.folder / "progress.json").read_text())
        rates[data]["start_up"] = seconds - note["seconds"]
    ray.shutdown()
    resident, streaming = rates["resident"], rates["streaming"]

    def against_plain(name: str, of: dict[str, float]) -> Ratio:
        return Ratio(name, of["ray"] / of["plain"], of["ray"], of["plain"], "updates/s", "no Ray, same time", COMMAND)

    return [
        against_plain("train.ray_over_plain", resident),
        against_plain("train.streaming_over_plain", streaming),
        Value("train.ray_start_up", resident["start_up"], "s", COMMAND),
    ]


def _train_plainly(training: BackboneTraining, dataset: Dataset, folder: Path) -> None:
    torch.set_num_threads(1)
    episodes = dataset.read(FAMILY.train_tasks, "random")
    train(training, training.learning_task(*make_resident(training, episodes, CPU), CPU), folder)


@contextmanager
def _watching(folder: Path) -> Iterator[dict[str, float]]:
    """Fill in the updates a second of the trainings in `folder`/ray and `folder`/plain.

    Both are taken over the same seconds: from the second checkpoint of the one on Ray, by when all is warm, to its end.
    """
    rates: dict[str, float] = {}
    steps: dict[str, list[tuple[float, int]]] = {"ray": [], "plain": []}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            now = time.perf_counter()
            for name, seen in steps.items():
                if (path := folder / name / "progress.json").is_file():
                    step = json.loads(path.read_text())["step"]
                    if not seen or step > seen[-1][1]:
                        seen.append((now, step))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield rates
    finally:
        stop.set()
        thread.join()
    begin = next(at for at, step in steps["ray"] if step >= 2 * CHECKPOINT_EVERY)
    end = steps["ray"][-1][0]
    for name, seen in steps.items():
        (first_at, first), *_, (last_at, last) = [(at, step) for at, step in seen if begin <= at <= end]
        rates[name] = (last - first) / (last_at - first_at)
