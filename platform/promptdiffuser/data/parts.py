"""One Parquet file of a dataset: some episodes of one task and quality, one row an episode.

    DATASET/task=7/quality=expert/part-00000.parquet

Columns: `episode` (its number within task and quality), `seed` (of the simulator's reset), `length`, `success`, and the
native `fixed_shape_tensor` columns `observations` (T, S), `actions` (T, A), `rewards` (T), all float32; what lies
beyond an episode's length is zero. Native tensors are the only encoding that Arrow and Ray Data hand over as one
contiguous array; the zeros of a short episode cost next to nothing compressed.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.manifest import FileRecord
from promptdiffuser.data.storage import Storage
from promptdiffuser.errors import UserError
from promptdiffuser.tasks.family import TaskFamily

MAX_STEPS = 50_000
"""Steps (episodes times horizon) that a file holds at most, so that whoever holds one file holds some 10 MB."""
ROWS_AT_A_TIME = 64
"""Episodes decoded at a time while a file is checked."""


def part_path(task: int, quality: str, number: int) -> str:
    """Return the path of a file relative to the dataset folder."""
    return f"task={task}/quality={quality}/part-{number:05}.parquet"


def part_number(name: str) -> int:
    """Return the number in the path of a file."""
    return int(name.rpartition("part-")[2].removesuffix(".parquet"))


def episodes_per_part(family: TaskFamily) -> int:
    """Return how many episodes of a family a file holds at most."""
    return max(1, MAX_STEPS // family.horizon)


def part_schema(family: TaskFamily) -> pa.Schema:
    """Return the columns and types of a family's files."""

    def tensor(*shape: int) -> pa.DataType:
        return pa.fixed_shape_tensor(pa.float32(), list(shape))

    columns = {
        "episode": pa.int64(),
        "seed": pa.int64(),
        "length": pa.int64(),
        "success": pa.bool_(),
        "observations": tensor(family.horizon, family.observation_dim),
        "actions": tensor(family.horizon, family.action_dim),
        "rewards": tensor(family.horizon),
    }
    return pa.schema([pa.field(name, kind) for name, kind in columns.items()])


def write_part(
    storage: Storage, family: TaskFamily, quality: str, number: int, episodes: Episodes, first_episode: int
) -> tuple[str, FileRecord]:
    """Write episodes of one task as one file and return its path and record.

    Raises:
        UserError: The episodes are not of the family's dimensions, not finite, or of impossible length.
    """
    (task,) = np.unique(episodes.tasks)
    name = part_path(int(task), quality, number)
    if fault := find_fault(family, episodes):
        raise UserError(f"{storage.location}/{name}: {fault}; nothing was written")
    numbers = np.arange(first_episode, first_episode + len(episodes), dtype=np.int64)
    schema = part_schema(family)
    columns = [
        pa.array(numbers),
        pa.array(episodes.seeds),
        pa.array(episodes.lengths),
        pa.array(episodes.successes),
        *(
            _tensor_column(schema.field(field).type, getattr(episodes, field))
            for field in ("observations", "actions", "rewards")
        ),
    ]
    with storage.writing(name) as file:
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), file, compression="zstd")
    return name, describe_part(storage, name, int(task), quality, episodes)


def read_part(storage: Storage, name: str, task: int) -> Episodes:
    """Read one file; the task is in the path, not in the file."""
    with storage.open(name) as file:
        return _as_episodes(pq.ParquetFile(file).read(), task)


def read_seeds(storage: Storage, name: str) -> NDArray[np.int64]:
    """Read the seeds of one file."""
    with storage.open(name) as file:
        seeds: NDArray[np.int64] = pq.ParquetFile(file).read(["seed"])["seed"].to_numpy()
    return seeds


def describe_part(storage: Storage, name: str, task: int, quality: str, episodes: Episodes) -> FileRecord:
    """Return the record of a file that holds these episodes."""
    returns = episodes.returns
    return FileRecord(
        task=task,
        quality=quality,
        episodes=len(episodes),
        steps=int(episodes.lengths.sum()),
        return_mean=float(returns.mean()),
        return_min=float(returns.min()),
        return_max=float(returns.max()),
        successes=int(episodes.successes.sum()),
        sha256=storage.sha256(name),
    )


def check_part(storage: Storage, family: TaskFamily, name: str, record: FileRecord) -> NDArray[np.int64]:
    """Check a file and return its seeds; reads it in pieces, however large it is.

    Raises:
        UserError: The file is missing, damaged or not the family's.
    """
    path = f"{storage.location}/{name}"
    if not storage.has(name):
        raise UserError(f"{path} is missing though the manifest lists it; restore it or collect the dataset again")
    if storage.sha256(name) != record.sha256:
        raise UserError(f"{path} has another digest than the manifest records; restore it or collect the dataset again")
    try:
        with storage.open(name) as file:
            parquet = pq.ParquetFile(file)
            expected = part_schema(family)
            if not parquet.schema_arrow.equals(expected):
                raise UserError(f"{path} has other columns than {family.name}: {_difference(parquet, expected)}")
            rows = steps = 0
            seeds = [np.zeros(0, np.int64)]
            for batch in _batches(parquet):
                if holes := [name for name in expected.names if _nulls(batch.column(name))]:
                    raise UserError(f"{path}: {holes[0]} has missing values; collect the dataset again")
                piece = _as_episodes(pa.Table.from_batches([batch]), record.task)
                if fault := find_fault(family, piece, first_episode=rows):
                    raise UserError(f"{path}: {fault}; collect the dataset again")
                rows, steps = rows + len(piece), steps + int(piece.lengths.sum())
                seeds.append(piece.seeds)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error}); collect the dataset again") from error
    if (rows, steps) != (record.episodes, record.steps):
        raise UserError(
            f"{path} holds {rows} episodes of {steps} steps, the manifest says {record.episodes} of {record.steps}; "
            "collect the dataset again"
        )
    return np.concatenate(seeds)


def find_fault(family: TaskFamily, episodes: Episodes, first_episode: int = 0) -> str | None:
    """Say in words what makes these episodes unfit for the family, or return None."""
    count = len(episodes)
    shapes = {
        "observations": (count, family.horizon, family.observation_dim),
        "actions": (count, family.horizon, family.action_dim),
        "rewards": (count, family.horizon),
    }
    for name, shape in shapes.items():
        if (found := getattr(episodes, name).shape) != shape:
            return f"{name} have shape {found}, {family.name} needs {shape}"
    impossible = np.flatnonzero((episodes.lengths < 1) | (episodes.lengths > family.horizon)).tolist()
    if impossible:
        row = impossible[0]
        return f"episode {first_episode + row} has length {episodes.lengths[row]}, not 1 to {family.horizon}"
    beyond = np.arange(family.horizon) >= episodes.lengths[:, None]
    for name in shapes:
        values = getattr(episodes, name).reshape(count, family.horizon, -1)
        if bad := np.argwhere(~np.isfinite(values)).tolist():
            return f"{name} of episode {first_episode + bad[0][0]} are not finite at step {bad[0][1]}"
        if bad := np.argwhere(beyond & (values != 0).any(axis=2)).tolist():
            return f"{name} of episode {first_episode + bad[0][0]} are not zero beyond its length, at step {bad[0][1]}"
    return None


def _batches(parquet: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    batches: Iterator[pa.RecordBatch] = parquet.iter_batches(batch_size=ROWS_AT_A_TIME)
    return batches


def _nulls(column: pa.Array) -> int:
    numbers = column.storage.flatten() if isinstance(column, pa.ExtensionArray) else column
    count: int = column.null_count + numbers.null_count
    return count


def _difference(parquet: pq.ParquetFile, expected: pa.Schema) -> str:
    found = parquet.schema_arrow
    for field in expected:
        if field.name not in found.names:
            return f"{field.name} is missing; collect the dataset again"
        if found.field(field.name).type != field.type:
            return f"{field.name} is {found.field(field.name).type}, not {field.type}; collect the dataset again"
    extra = [name for name in found.names if name not in expected.names]
    return f"{', '.join(extra) or 'their order'} is not expected; collect the dataset again"


def _as_episodes(table: pa.Table, task: int) -> Episodes:
    table = table.combine_chunks()
    return Episodes(
        tasks=np.full(table.num_rows, task, np.int64),
        seeds=table["seed"].to_numpy(),
        lengths=table["length"].to_numpy(),
        successes=table["success"].to_numpy(),
        observations=_tensor_array(table["observations"]),
        actions=_tensor_array(table["actions"]),
        rewards=_tensor_array(table["rewards"]),
    )


def _tensor_column(kind: pa.DataType, array: NDArray[np.float32]) -> pa.ExtensionArray:
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    return pa.ExtensionArray.from_storage(
        kind, pa.FixedSizeListArray.from_arrays(flat, array[0].size if len(array) else 1)
    )


def _tensor_array(column: pa.ChunkedArray) -> NDArray[np.float32]:
    array: NDArray[np.float32] = column.combine_chunks().to_numpy_ndarray()
    return array
