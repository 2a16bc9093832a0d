"""`manifest.json`: what a dataset folder holds, how it was made, and the digests that prove it is unchanged."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from promptdiffuser.data.storage import Storage
from promptdiffuser.errors import UserError
from promptdiffuser.tasks.family import Goal
from promptdiffuser.versions import versions_of

SCHEMA_VERSION = 2
FILE_NAME = "manifest.json"
# Physics differs between MuJoCo versions (HalfCheetah-v5, 200 equal steps: -85.5 in 3.3.0, -75.2 in 3.17.0).
PHYSICS_PACKAGE = "mujoco"
PART_NAME = re.compile(r"task=(?P<task>\d+)/quality=(?P<quality>[a-z]+)/part-\d{5,}\.parquet", re.ASCII)
"""A file's path, relative to the dataset folder and inside it."""
RECORDED_PACKAGES = ("mujoco", "gymnasium", "metaworld", "numpy", "pyarrow", "promptdiffuser")


@dataclass(frozen=True)
class FileRecord:
    """One Parquet file of the dataset."""

    task: int
    quality: str
    episodes: int
    steps: int
    return_mean: float
    return_min: float
    return_max: float
    successes: int
    """Episodes that were solved; 0 where the family does not say what success is."""
    sha256: str


@dataclass(frozen=True)
class TaskRecord:
    """One task: the numbers that define it and the returns that scores are normalised with."""

    goal: Goal
    random_return: float
    """Mean return of uniformly random actions, score 0 (tasks/references.py)."""
    expert_return: float
    """Mean return of the family's expert, score 1 (tasks/references.py)."""


@dataclass(frozen=True)
class Manifest:
    """Contents of `manifest.json`."""

    family: str
    observation_dim: int
    action_dim: int
    horizon: int
    seed: int | None
    """Seed of the collection; none for imported episodes."""
    commands: tuple[str, ...]
    """What made the dataset: the first command and every one that appended to it."""
    versions: dict[str, str]
    tasks: dict[int, TaskRecord]
    files: dict[str, FileRecord]
    """Path relative to the dataset folder -> record."""
    schema_version: int = SCHEMA_VERSION

    @property
    def digest(self) -> str:
        """Identify the dataset: 32 hexadecimal digits over everything here but the commands, files by checksum."""
        content = asdict(self) | {"commands": None}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def best_return(self, task: int) -> float:
        """Return the highest return of any episode of a task."""
        return max(record.return_max for record in self.files.values() if record.task == task)

    def write(self, storage: Storage) -> None:
        """Write the manifest, replacing the one before at once."""
        document = asdict(self) | {"digest": self.digest}
        with storage.writing(FILE_NAME) as file:
            file.write((json.dumps(document, indent=1) + "\n").encode())

    @staticmethod
    def read(storage: Storage) -> "Manifest":
        """Read the manifest of a dataset folder.

        Raises:
            UserError: It is missing, is not a manifest, was edited, or names a file that cannot be the dataset's.
        """
        path = f"{storage.location}/{FILE_NAME}"
        if not storage.has(FILE_NAME):
            raise UserError(
                f"{storage.location} is not a dataset: it has no {FILE_NAME}; make one with jobs/collect.py"
            )
        try:
            with storage.open(FILE_NAME) as file:
                document: dict[str, Any] = json.loads(file.read().decode())
            if document["schema_version"] != SCHEMA_VERSION:
                raise UserError(
                    f"{path} has schema version {document['schema_version']}, this platform reads {SCHEMA_VERSION}; "
                    "collect the dataset again with jobs/collect.py"
                )
            recorded_digest = document.pop("digest")
            document["versions"][PHYSICS_PACKAGE]
            document["commands"] = tuple(document["commands"])
            document["tasks"] = {
                int(task): TaskRecord(**record | {"goal": tuple(record["goal"])})
                for task, record in document["tasks"].items()
            }
            document["files"] = {name: FileRecord(**record) for name, record in document["files"].items()}
            manifest = Manifest(**document)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a valid dataset manifest ({error}); collect the dataset again") from error
        for name, record in manifest.files.items():
            found = PART_NAME.fullmatch(name)
            if not found or (found["task"], found["quality"]) != (str(record.task), record.quality):
                raise UserError(
                    f"{path} names {name[:200]!r} as a file of task {record.task!r:.40} and quality "
                    f"{record.quality!r:.40}; such files are task=TASK/quality=QUALITY/part-NUMBER.parquet inside the "
                    "dataset's folder; collect the dataset again"
                )
        if recorded_digest != manifest.digest:
            raise UserError(f"{path} was edited: its digest does not match its content; collect it again")
        return manifest


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that decide what the simulator computes and the store writes."""
    return versions_of(RECORDED_PACKAGES)
