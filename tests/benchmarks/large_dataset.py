"""A dataset of 20 million steps: written, validated, and read through Ray Data by workers that may use 2 GiB each."""

import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.dataset
import ray
import ray.data

from promptdiffuser.data.store import Dataset, DatasetWriter
from promptdiffuser.distributed.datasets import read_files
from promptdiffuser.evaluation.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import RandomPolicy
from tests.benchmarks.entry import Ratio, Value

COMMAND = "python -m tests.benchmarks large_dataset"
ROOT = Path(__file__).resolve().parents[2]
STEPS = 20_000_000
WORKERS = 2
WORKER_BYTES = 2 << 30
BATCH_EPISODES = 500
WATCH_SECONDS = 0.05
_peak = [0]
"""Highest private memory of this worker."""


def run() -> list[Value | Ratio]:
    """Measure on episodes of random actions, repeated; a worker that uses more memory ends, and the reading fails."""
    family = get_family("cheetah-vel")
    seeds = list(range(32))
    requests = [EpisodeRequest(0, seed) for seed in seeds]
    real = EpisodeStepper(family).run(requests, RandomPolicy(family, seeds))
    per_task = STEPS // family.horizon // len(family.tasks)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        writer = DatasetWriter(Path(folder) / "dataset", family, COMMAND)
        for task in family.tasks:
            tiled = real.select(np.resize(np.arange(len(real)), per_task))
            tiled.tasks[:] = task
            writer.add("random", tiled)
        written = time.perf_counter()
        dataset = writer.commit()
        validated = time.perf_counter()
        pyarrow_rate = _scan_with_pyarrow(dataset)
        ray_rate, peak = _read_with_ray(dataset)
    return [
        Value("data.write_seconds", written - started, "s", COMMAND),
        Value("data.validate_seconds", validated - written, "s", COMMAND),
        Ratio("data.ray_over_pyarrow", ray_rate / pyarrow_rate, ray_rate, pyarrow_rate, "steps/s", "pyarrow", COMMAND),
        Value("data.ray_worker_peak_memory", peak / 2**30, "GiB", COMMAND),
    ]


def _scan_with_pyarrow(dataset: Dataset) -> float:
    files = [dataset.storage.path(name) for name in dataset.manifest.files]
    started = time.perf_counter()
    rows = sum(batch.num_rows for batch in pyarrow.dataset.dataset(files).to_batches())
    return rows * dataset.manifest.horizon / (time.perf_counter() - started)


def _read_with_ray(dataset: Dataset) -> tuple[float, int]:
    """Return steps a second, all of them, and the highest memory that a worker used, in bytes."""
    ray.shutdown()
    # The workers import this very module for the hook.
    environment = {"worker_process_setup_hook": _limit_memory, "env_vars": {"PYTHONPATH": str(ROOT)}}
    ray.init("local", num_cpus=4, runtime_env=environment, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    readers = [_Reader.remote() for _ in range(WORKERS)]
    ray.get([reader.peak.remote() for reader in readers])
    started = time.perf_counter()
    # A read task takes in all its files at once, however many: one file a task keeps its memory bounded.
    episodes = read_files(dataset, dataset.family.tasks, "random", blocks=len(dataset.manifest.files))
    shards = episodes.streaming_split(WORKERS)
    counts = ray.get([reader.read.remote(shard) for reader, shard in zip(readers, shards, strict=True)])
    rate = sum(steps for steps, _ in counts) / (time.perf_counter() - started)
    expected = sum(record.return_mean * record.episodes for record in dataset.manifest.files.values())
    if not np.isclose(sum(returns for _, returns in counts), expected):
        raise SystemExit("Ray Data did not read what the manifest describes")
    peak = max(ray.get([reader.peak.remote() for reader in readers]))
    ray.shutdown()
    return rate, peak


def _limit_memory() -> None:
    # The kernel's own limits count what is reserved, the stacks of idle threads too; this one counts what is used.
    threading.Thread(target=_end_beyond_limit, daemon=True).start()


def _end_beyond_limit() -> None:
    while (used := _private_memory()) <= WORKER_BYTES:
        _peak[0] = max(_peak[0], used)
        time.sleep(WATCH_SECONDS)
    os._exit(137)


def _private_memory() -> int:
    """Return the anonymous resident memory, bytes; the object store's shared pages are not a worker's own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@ray.remote(num_cpus=1)
class _Reader:
    def read(self, shard: ray.data.DataIterator) -> tuple[int, float]:
        steps, returns = 0, 0.0
        for batch in shard.iter_batches(batch_size=BATCH_EPISODES, batch_format="numpy"):
            steps += int(batch["length"].sum())
            returns += float(batch["rewards"].sum(dtype=np.float64))
        return steps, returns

    def peak(self) -> int:
        """Return the peak of the worker's private memory so far, bytes."""
        from tests.benchmarks import large_dataset  # the module that the hook runs in; this class comes as a copy

        return large_dataset._peak[0]
