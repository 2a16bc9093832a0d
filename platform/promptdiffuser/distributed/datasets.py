"""Ray Data: from the Parquet files of a dataset to each Train worker's resident shard."""

import logging
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch
from numpy.typing import NDArray
from ray.train import DataConfig

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.storage import Storage
from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import PromptPool, ResidentEpisodes, cut_pool_pieces
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.training.trainings import Training

EPISODES, POOL = "episodes", "pool"
# Few large read tasks, where Ray Data's default is at least 200: a reader's process takes seconds to start, in which
# another reads some million steps of about 120 bytes.
MOST_READERS, STEPS_PER_READER = 4, 2_000_000
# Key of an episode in the order (task, episode within the task).
TASK_STRIDE = 1_000_000

Rows = dict[str, NDArray[Any]]


def read_files(dataset: Dataset, tasks: Collection[int], quality: Quality, blocks: int = 0) -> ray.data.Dataset:
    """Return the episodes of some tasks as a Ray dataset, one row an episode, read where they are needed.

    Args:
        dataset: The dataset.
        tasks: The tasks wanted.
        quality: The quality wanted.
        blocks: Read tasks at most, by the number of steps if 0; each reads its files one by one, so its memory does not
            grow with their number.
    """
    # Not `read_parquet`: it lists the files in a stage of its own first, which takes many times as long as reading
    # them, and decides alone how many files a task reads. The manifest has the list, and all files have equal columns.
    records = dataset.files(tasks, quality)
    steps = sum(record.steps for _, record in records)
    blocks = blocks or min(MOST_READERS, 1 + steps // STEPS_PER_READER)
    files = [{"name": name, "task": record.task} for name, record in records]
    names = ray.data.from_items(files, override_num_blocks=min(blocks, len(files)))
    return names.map_batches(partial(_tables, storage=dataset.storage), batch_size=None)


def _tables(files: Rows, storage: Storage) -> Iterator[pa.Table]:
    for name, task in zip(files["name"], files["task"], strict=True):
        with storage.open(name) as file:
            table = pq.ParquetFile(file).read()
        yield table.append_column("task", pa.array(np.full(len(table), task, np.int64)))


def training_datasets(
    dataset: Dataset, tasks: Collection[int], quality: Quality, training: Training, resident: bool = True
) -> dict[str, ray.data.Dataset]:
    """Return the datasets of a training: the prompt pool, for every worker, and whole episodes, to be sharded.

    They are materialised here, before the training takes its CPUs: the files are read once, and no worker waits for a
    reader to start. A resident shard is taken once, so there is nothing to stream; where windows are streamed instead,
    only the pool is kept.
    """
    _quieten()
    episodes = read_files(dataset, tasks, quality)
    # Shards are cut by position, so the order must be that of the files in every run.
    episodes.context.execution_options.preserve_order = True
    if resident:
        episodes = episodes.materialize()
    cut: Any = partial(_pool_rows, prompt_length=training.prompt_length, num_transitions=training.context_transitions)
    pool = episodes.map_batches(cut, batch_size=None, batch_format="numpy").materialize()
    return {EPISODES: episodes, POOL: pool} if resident else {POOL: pool}


def _quieten() -> None:
    """Keep Ray Data's progress off the driver's screen, where the stage shows its own."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


class ShardByEpisode(DataConfig):
    """Splits the episodes over the workers into fixed, nearly equal shards and gives the pool to all.

    Ray's own split drops rows that do not divide evenly and deals blocks by arrival; a resident shard is taken once, so
    it can be exact and the same in every run.
    """

    def __init__(self, datasets: Collection[str] = (EPISODES, POOL)) -> None:
        super().__init__(datasets_to_split=[name for name in datasets if name == EPISODES])

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """Return each worker's iterators; Ray Train asks for one dataset at a time, the unsplit pool too."""
        iterators: list[dict[str, ray.data.DataIterator]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            shards = _split_evenly(dataset, world_size) if name == EPISODES else [dataset] * world_size
            for rank, shard in enumerate(shards):
                iterators[rank][name] = shard.iterator()
        return iterators


def _split_evenly(rows: ray.data.Dataset, parts: int) -> list[ray.data.Dataset]:
    count = rows.count()
    cuts = [share_of(count, part, parts).start for part in range(1, parts)]
    return [*rows.split_at_indices(cuts)] if cuts else [rows]


def share_of(num_episodes: int, rank: int, world_size: int) -> range:
    """Return the episodes, by their place in the index, that a worker holds."""
    return range(num_episodes * rank // world_size, num_episodes * (rank + 1) // world_size)


def prompt_pool(training: Training, device: torch.device, pool: ray.data.DataIterator) -> PromptPool:
    """Keep the prompt pool as tensors on the device."""
    return PromptPool.build(_take_all(pool), training.normaliser(), device)


def resident_shard(
    training: Training, device: torch.device, episodes: ray.data.DataIterator, pool: ray.data.DataIterator
) -> tuple[ResidentEpisodes, PromptPool]:
    """Take a worker's shard once and keep it, with the prompt pool, as tensors on the device."""
    pool_rows, episode_rows = _take_all(pool), _take_all(episodes)
    normaliser = training.normaliser()
    keys, episode_keys = _keys(pool_rows), _keys(episode_rows)
    numbers = np.searchsorted(keys, episode_keys)
    if not np.array_equal(keys[numbers.clip(max=len(keys) - 1)], episode_keys):
        raise RuntimeError("a worker's shard holds episodes that its prompt pool lacks: the pool must not be split")
    resident = ResidentEpisodes.build(
        _as_episodes(episode_rows), numbers, normaliser, device, num_episodes=len(pool_rows["task"])
    )
    return resident, PromptPool.build(pool_rows, normaliser, device)


def _take_all(iterator: ray.data.DataIterator) -> Rows:
    whole_blocks: Any = None
    batches = list(iterator.iter_batches(batch_size=whole_blocks, batch_format="numpy"))
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    order = np.argsort(_keys(rows))
    return {name: values[order] for name, values in rows.items()}


def _keys(rows: Rows) -> NDArray[np.int64]:
    keys: NDArray[np.int64] = rows["task"] * TASK_STRIDE + rows["episode"]
    return keys


def _as_episodes(rows: Rows) -> Episodes:
    return Episodes(
        tasks=rows["task"],
        seeds=rows["seed"],
        lengths=rows["length"],
        successes=rows["success"],
        observations=rows["observations"],
        actions=rows["actions"],
        rewards=rows["rewards"],
    )


def _pool_rows(rows: Any, prompt_length: int, num_transitions: int) -> Any:
    return {"episode": rows["episode"], **cut_pool_pieces(_as_episodes(rows), prompt_length, num_transitions)}
