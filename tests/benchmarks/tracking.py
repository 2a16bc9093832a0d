"""What logging costs a training at the quickstart's batch: the calls it waits for, and the delivery beside it."""

import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from promptdiffuser.tracking.delivery import Delivery
from promptdiffuser.tracking.store import prepare
from promptdiffuser.training.backbone_objective import BackboneLossConfig
from promptdiffuser.training.trainings import make_resident, train
from tests.benchmarks.entry import Value
from tests.benchmarks.training import CPU, FAMILY, backbone_training, collect

COMMAND = "python -m tests.benchmarks tracking"
BATCH, STEPS, CHECKPOINT_EVERY = 64, 200, 100
"""Batch and checkpoints of the quickstart's pre-training, which logs at every checkpoint."""


def run() -> list[Value]:
    """Train on one core with a journal and its delivery to SQLite in the same process, as a stage's driver has it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = collect(folder / "dataset")
        training = backbone_training(dataset)
        optimisation = replace(training.optimisation, steps=STEPS, checkpoint_every=CHECKPOINT_EVERY)
        training = replace(training, loss=BackboneLossConfig(BATCH), optimisation=optimisation)
        task = training.learning_task(*make_resident(training, dataset.read(FAMILY.train_tasks, "random"), CPU), CPU)
        tracker = prepare(f"sqlite:///{folder}/mlflow.db", "bench", journal=folder / "journal")
        waited = 0.0
        with Delivery(tracker.uri, folder / "journal"):
            log = tracker.run("bench", "bench", None, {})

            def on_checkpoint(history: Sequence[Mapping[str, float]]) -> None:
                nonlocal waited
                began = time.perf_counter()
                log.log_history(history)
                waited += time.perf_counter() - began

            started, own_started = time.perf_counter(), time.thread_time()
            train(training, task, folder / "training", on_checkpoint=on_checkpoint)
            seconds, own_seconds = time.perf_counter() - started, time.thread_time() - own_started
            delivered = _cpu_seconds("journal")
    return [
        Value("track.share", 100 * waited / seconds, "% of a training step", COMMAND),
        Value("track.delivery", 100 * delivered / own_seconds, "% of the training's CPU time, beside it", COMMAND),
    ]


def _cpu_seconds(name: str) -> float:
    """Return the CPU time that a thread of this process has used."""
    (thread,) = [thread for thread in threading.enumerate() if thread.name == name]
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
