"""Episodes and datasets whose numbers are drawn at random, for tests that need no simulator."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.manifest import FileRecord, Manifest
from promptdiffuser.data.storage import Storage
from promptdiffuser.data.store import DatasetWriter
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.tasks.family import TaskFamily

QUALITIES: tuple[Quality, ...] = ("expert", "random")


def draw_episodes(
    family: TaskFamily, tasks: Sequence[int], lengths: Sequence[int] | None = None, seed: int = 0
) -> Episodes:
    """One episode for each entry of `tasks`; steps past an episode's length are zero, as the stepper leaves them."""
    rng = np.random.default_rng([seed, len(tasks)])
    lengths_N = np.array(lengths if lengths is not None else [family.horizon] * len(tasks), np.int64)
    valid_NT = np.arange(family.horizon) < lengths_N[:, None]
    shape = (len(tasks), family.horizon)
    observations = rng.normal(2.0, 3.0, (*shape, family.observation_dim)) * valid_NT[..., None]
    actions = rng.uniform(-1.0, 1.0, (*shape, family.action_dim)) * valid_NT[..., None]
    rewards = rng.normal(-0.5, 0.3, shape) * valid_NT
    return Episodes(
        tasks=np.array(tasks, np.int64),
        seeds=rng.integers(0, 2**31, len(tasks)),
        lengths=lengths_N,
        successes=rng.random(len(tasks)) < 0.5,
        observations=observations.astype(np.float32),
        actions=actions.astype(np.float32),
        rewards=rewards.astype(np.float32),
    )


def write_dataset(
    location: str | Path, family: TaskFamily, tasks: Sequence[int], episodes: int = 2, seed: int = 0
) -> dict[tuple[int, str], Episodes]:
    """Write a valid dataset and return its episodes by task and quality."""
    drawn = {
        (task, quality): draw_episodes(family, [task] * episodes, seed=seed + 1_000 * task + number)
        for task in tasks
        for number, quality in enumerate(QUALITIES)
    }
    writer = DatasetWriter(location, family, "a test", seed)
    for (_, quality), part in drawn.items():
        writer.add(quality, part)
    writer.commit()
    return drawn


def assert_equal(left: Episodes, right: Episodes) -> None:
    """Compare bit by bit, so that -0.0 is not 0.0."""
    for field in dataclasses.fields(Episodes):
        mine, other = getattr(left, field.name), getattr(right, field.name)
        assert mine.dtype == other.dtype, field.name
        assert mine.shape == other.shape, field.name
        assert mine.tobytes() == other.tobytes(), field.name


def columns_of(episodes: Episodes) -> dict[str, pa.Array]:
    """The columns of a file by name, built without the code under test."""
    plain = {"seed": episodes.seeds, "length": episodes.lengths, "success": episodes.successes}
    tensors = {"observations": episodes.observations, "actions": episodes.actions, "rewards": episodes.rewards}
    return (
        {"episode": pa.array(np.arange(len(episodes)))}
        | {name: pa.array(values) for name, values in plain.items()}
        | {
            name: pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))
            for name, values in tensors.items()
        }
    )


def encode(columns: dict[str, pa.Array]) -> bytes:
    """A Parquet file of these columns."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def plant(folder: Path, name: str, content: bytes) -> FileRecord:
    """Replace a file of a dataset and record its checksum, so that nothing but the content can give it away."""
    (folder / name).write_bytes(content)
    storage = Storage.at(folder)
    manifest = Manifest.read(storage)
    record = dataclasses.replace(manifest.files[name], sha256=hashlib.sha256(content).hexdigest())
    dataclasses.replace(manifest, files=manifest.files | {name: record}).write(storage)
    return record
