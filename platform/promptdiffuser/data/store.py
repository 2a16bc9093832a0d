"""The dataset folder: Parquet with one row an episode, partitioned by task and quality, and its manifest.

    DATASET/task=7/quality=expert/part-0.parquet
    DATASET/manifest.json                           (written last: a folder without it is not a dataset)

Columns: `episode` (its number within task and quality), `seed` (of the simulator's reset), `length`, and the native
`fixed_shape_tensor` columns `observations` (T, S), `actions` (T, A), `rewards` (T), all float32. Native tensors are the
only encoding that Arrow and Ray Data hand over as one contiguous array.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.manifest import PHYSICS_PACKAGE, FileRecord, Manifest, package_versions
from promptdiffuser.errors import UserError
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.family import TaskFamily


def part_path(task: int, quality: str) -> str:
    """Return the path of a task's file relative to the dataset folder."""
    return f"task={task}/quality={quality}/part-0.parquet"


def write_part(folder: Path, quality: str, episodes: Episodes) -> Path:
    """Write the episodes of one task and quality, under a temporary name first, and return the file's path."""
    (task,) = np.unique(episodes.tasks)
    path = folder / part_path(int(task), quality)
    table = pa.table(
        {
            "episode": np.arange(len(episodes), dtype=np.int64),
            "seed": episodes.seeds,
            "length": episodes.lengths,
            "observations": _tensor_column(episodes.observations),
            "actions": _tensor_column(episodes.actions),
            "rewards": _tensor_column(episodes.rewards),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    pq.write_table(table, temporary, compression="zstd")
    temporary.rename(path)
    return path


def read_part(path: Path, task: int) -> Episodes:
    """Read one Parquet file back; the task is in the path, not in the file."""
    table = pq.ParquetFile(path).read().combine_chunks()
    return Episodes(
        tasks=np.full(table.num_rows, task, np.int64),
        seeds=table["seed"].to_numpy(),
        lengths=table["length"].to_numpy(),
        observations=_tensor_array(table["observations"]),
        actions=_tensor_array(table["actions"]),
        rewards=_tensor_array(table["rewards"]),
    )


def file_record(path: Path, task: int, quality: str, lengths: NDArray[np.int64]) -> FileRecord:
    """Describe a file that was just written."""
    return FileRecord(task, quality, len(lengths), int(lengths.sum()), _sha256(path))


@dataclass(frozen=True)
class Dataset:
    """A dataset folder that passed validation."""

    folder: Path
    manifest: Manifest

    @property
    def family(self) -> TaskFamily:
        """The task family the data belongs to."""
        return get_family(self.manifest.family)

    def files(self, tasks: Collection[int], quality: str = "expert") -> list[tuple[Path, FileRecord]]:
        """Return the files of some tasks, ordered by task; raises `UserError` naming tasks without data."""
        found = [(self.folder / path, r) for path, r in self.manifest.files.items() if r.quality == quality]
        missing = set(tasks) - {record.task for _, record in found}
        if missing:
            raise UserError(f"{self.folder} has no {quality} episodes of task(s) {sorted(missing)}; collect them")
        return sorted(((p, r) for p, r in found if r.task in set(tasks)), key=lambda pair: pair[1].task)

    def read(self, tasks: Collection[int], quality: str = "expert", limit: int | None = None) -> Episodes:
        """Read the episodes of some tasks into memory, the first `limit` of each task if given."""
        parts = [read_part(path, record.task) for path, record in self.files(tasks, quality)]
        return Episodes.concatenate([part.select(slice(limit)) for part in parts])


def open_dataset(folder: Path) -> Dataset:
    """Open and validate a dataset folder.

    Raises:
        UserError: The manifest is missing or edited, a file is missing or changed, the dimensions are not the
            family's, or the data was made with another physics version.
    """
    manifest = Manifest.read(folder)
    family = get_family(manifest.family)
    expected = (family.observation_dim, family.action_dim, family.horizon)
    found = (manifest.observation_dim, manifest.action_dim, manifest.horizon)
    if found != expected:
        raise UserError(f"{folder}: (observation, action, horizon) is {found}, {family.name} has {expected}")
    made_with, here = manifest.versions[PHYSICS_PACKAGE], package_versions()[PHYSICS_PACKAGE]
    if made_with != here:
        raise UserError(
            f"{folder} was made with {PHYSICS_PACKAGE} {made_with}, installed is {here}: physics differs between "
            "versions; install that version or collect the dataset again"
        )
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing though the manifest lists it; collect the dataset again")
        if _sha256(path) != record.sha256:
            raise UserError(f"{path} has another digest than the manifest records; collect the dataset again")
    return Dataset(folder, manifest)


def _tensor_column(array: NDArray[np.float32]) -> pa.ExtensionArray:
    if array.ndim == 2:
        flat = pa.array(np.ascontiguousarray(array).ravel())
        storage = pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
        return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [array.shape[1]]), storage)
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(array))


def _tensor_array(column: pa.ChunkedArray) -> NDArray[np.float32]:
    array: NDArray[np.float32] = column.combine_chunks().to_numpy_ndarray()
    return array


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
