"""`manifest.json`: what a dataset folder holds, how it was made, and the digests that prove it is unchanged."""

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from promptdiffuser.errors import UserError

SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"
# Physics differs between MuJoCo versions (HalfCheetah-v5, 200 equal steps: -85.5 in 3.3.0, -75.2 in 3.17.0).
PHYSICS_PACKAGE = "mujoco"
RECORDED_PACKAGES = ("mujoco", "gymnasium", "numpy", "pyarrow", "promptdiffuser")


@dataclass(frozen=True)
class FileRecord:
    """One Parquet file of the dataset."""

    task: int
    quality: str
    episodes: int
    steps: int
    sha256: str


@dataclass(frozen=True)
class TaskRecord:
    """One task: its goal and the returns that scores are normalised with."""

    goal: float
    random_return: float
    """Mean return of uniformly random actions."""
    expert_return: float
    """Mean return of the expert's episodes in this dataset."""
    best_return: float
    """Highest return of any episode in this dataset."""


@dataclass(frozen=True)
class Manifest:
    """Contents of `manifest.json`."""

    family: str
    observation_dim: int
    action_dim: int
    horizon: int
    seed: int
    command: str
    versions: dict[str, str]
    tasks: dict[int, TaskRecord]
    files: dict[str, FileRecord]
    """Path relative to the dataset folder -> record."""
    schema_version: int = SCHEMA_VERSION

    @property
    def digest(self) -> str:
        """Identify the dataset: 32 hexadecimal digits over everything here but the command, files by checksum."""
        content = asdict(self) | {"command": None}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def write(self, folder: Path) -> None:
        """Write the manifest under a temporary name and rename it, so that it is never seen half-written."""
        temporary = folder / f".{FILE_NAME}.writing"
        temporary.write_text(json.dumps(asdict(self) | {"digest": self.digest}, indent=1) + "\n")
        temporary.rename(folder / FILE_NAME)

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """Read the manifest of a dataset folder; raises `UserError` if it is missing or not readable as one."""
        path = folder / FILE_NAME
        if not path.is_file():
            raise UserError(f"{folder} is not a dataset: it has no {FILE_NAME}; make one with jobs/collect.py")
        try:
            document: dict[str, Any] = json.loads(path.read_text())
            if document["schema_version"] != SCHEMA_VERSION:
                raise UserError(
                    f"{path} has schema version {document['schema_version']}, this platform reads {SCHEMA_VERSION}; "
                    "collect the dataset again with jobs/collect.py"
                )
            recorded_digest = document.pop("digest")
            document["versions"][PHYSICS_PACKAGE]
            document["tasks"] = {int(task): TaskRecord(**record) for task, record in document["tasks"].items()}
            document["files"] = {name: FileRecord(**record) for name, record in document["files"].items()}
            manifest = Manifest(**document)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a valid dataset manifest ({error}); collect the dataset again") from error
        if recorded_digest != manifest.digest:
            raise UserError(f"{path} was edited: its digest does not match its content; collect it again")
        return manifest


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that decide what the simulator computes and the store writes."""
    return {name: version(name) for name in RECORDED_PACKAGES}
