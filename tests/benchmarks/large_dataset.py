"""A dataset of 20 million steps: written, validated, and read through Ray Data by workers that may use 2 GiB each."""

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.dataset
import ray
import ray.data
from numpy.typing import NDArray

from promptdiffuser.data.store import Dataset, DatasetWriter
from promptdiffuser.distributed.datasets import read_files
from promptdiffuser.rollout.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import RandomPolicy
from tests.benchmarks.entry import Ratio, Value

COMMAND = "python -m tests.benchmarks large_dataset"
ROOT = Path(__file__).resolve().parents[2]
STEPS = 20_000_000
WORKERS = 2
WORKER_BYTES = 2 << 30
PASSES = 5
FILES_PER_TASK = 20
"""Files that a read task takes, one by one: some 100 MB, a block of Ray Data's usual size."""
WATCH_SECONDS = 0.05
PEAKS = "PROMPTDIFFUSER_BENCHMARK_PEAKS"
"""Variable that names the folder where each worker notes its highest private memory."""

Sums = tuple[int, float]
"""Steps and returns: what every reading adds up, so that it touches what it reads and can be checked."""


def run() -> list[Value | Ratio]:
    """Measure on episodes of random actions, repeated; a worker that uses more memory ends, and the reading fails."""
    family = get_family("cheetah-vel")
    seeds = list(range(32))
    requests = [EpisodeRequest(0, seed) for seed in seeds]
    real = EpisodeStepper(family).run(requests, RandomPolicy(family))
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
        reading = _read(dataset, Path(folder) / "peaks")
    return [
        Value("data.write_seconds", written - started, "s", COMMAND),
        Value("data.validate_seconds", validated - written, "s", COMMAND),
        *reading,
    ]


def _read(dataset: Dataset, peaks: Path) -> list[Value | Ratio]:
    """Read all of it by turns with pyarrow and through Ray Data, so that other load on the machine meets both.

    Both deliver every column of every row as contiguous memory. The first pass through Ray, which starts the processes
    that read and that deal out the blocks, is a figure of its own and not part of the ratio.
    """
    peaks.mkdir()
    ray.shutdown()
    # The workers import this very module for the hook.
    environment = {
        "worker_process_setup_hook": _limit_memory,
        "env_vars": {"PYTHONPATH": str(ROOT), PEAKS: str(peaks)},
    }
    ray.init("local", num_cpus=4, runtime_env=environment, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    readers = [_Reader.remote() for _ in range(WORKERS)]
    ray.get([reader.__ray_ready__.remote() for reader in readers])
    blocks = len(dataset.manifest.files) // FILES_PER_TASK
    shards = read_files(dataset, dataset.family.tasks, "random", blocks).streaming_split(WORKERS)

    def through_ray() -> list[Sums]:
        return ray.get([reader.read.remote(shard) for reader, shard in zip(readers, shards, strict=True)])

    first = _seconds(dataset, through_ray)
    pairs = [(_seconds(dataset, lambda: _scan(dataset)), _seconds(dataset, through_ray)) for _ in range(PASSES)]
    ray.shutdown()
    pyarrow_rate, ray_rate = (PASSES * _steps(dataset) / sum(seconds) for seconds in zip(*pairs, strict=True))
    peak = max(int(note.read_text() or 0) for note in peaks.iterdir())
    return [
        Value("data.ray_first_pass_seconds", first, "s", COMMAND),
        Ratio("data.ray_over_pyarrow", ray_rate / pyarrow_rate, ray_rate, pyarrow_rate, "steps/s", "pyarrow", COMMAND),
        Value("data.ray_worker_peak_memory", peak / 2**30, "GiB", COMMAND),
    ]


def _seconds(dataset: Dataset, read: Callable[[], list[Sums]]) -> float:
    started = time.perf_counter()
    steps, returns = np.sum(read(), axis=0)
    seconds = time.perf_counter() - started
    expected = sum(record.return_mean * record.episodes for record in dataset.manifest.files.values())
    if steps != _steps(dataset) or not np.isclose(returns, expected):
        raise SystemExit("what was read is not what the manifest describes")
    return seconds


def _steps(dataset: Dataset) -> int:
    return sum(record.steps for record in dataset.manifest.files.values())


def _scan(dataset: Dataset) -> list[Sums]:
    files = [dataset.storage.path(name) for name in dataset.manifest.files]
    batches = pyarrow.dataset.dataset(files).to_batches()
    return [_sums(batch["length"].to_numpy(), batch["rewards"].to_numpy_ndarray()) for batch in batches]


def _sums(lengths: NDArray[np.int64], rewards: NDArray[np.float32]) -> Sums:
    return int(lengths.sum()), float(rewards.sum(dtype=np.float64))


@ray.remote(num_cpus=1)
class _Reader:
    def read(self, shard: ray.data.DataIterator) -> Sums:
        steps, returns = 0, 0.0
        for block in shard.iter_batches(batch_size=None, batch_format="numpy"):
            of_block = _sums(block["length"], block["rewards"])
            steps, returns = steps + of_block[0], returns + of_block[1]
        return steps, returns


def _limit_memory() -> None:
    # The kernel's own limits count what is reserved, the stacks of idle threads too; this one counts what is used.
    threading.Thread(target=_end_beyond_limit, daemon=True).start()


def _end_beyond_limit() -> None:
    peak, note = 0, Path(os.environ[PEAKS], str(os.getpid()))
    while (used := _private_memory()) <= WORKER_BYTES:
        if used > peak:
            note.write_text(str(used))
            peak = used
        time.sleep(WATCH_SECONDS)
    os._exit(137)


def _private_memory() -> int:
    """Return the anonymous resident memory, bytes; the object store's shared pages are not a worker's own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
