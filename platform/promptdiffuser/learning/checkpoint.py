"""Checkpoint folders: safetensors and JSON with a checksum each, written under a temporary name and renamed last.

    CHECKPOINT/*.safetensors  *.json  manifest.json     (manifest: file name -> sha256)

Nothing in it is pickled, so reading a checkpoint never runs code.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptdiffuser.errors import UserError

MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint folder by file name without suffix."""

    tensors: dict[str, dict[str, Tensor]]
    documents: dict[str, Any]


def save_checkpoint(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, Any]) -> Path:
    """Write a checkpoint folder; whoever lists the parent sees all of it or nothing."""
    with replacing(folder) as new:
        for name, named in tensors.items():
            save_file({key: value.contiguous().cpu() for key, value in named.items()}, new / f"{name}.safetensors")
        for name, document in documents.items():
            (new / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
        checksums = {path.name: _sha256(path) for path in sorted(new.iterdir())}
        (new / MANIFEST).write_text(json.dumps(checksums, indent=1) + "\n")
    return folder


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give the body an empty folder to fill, which takes the place of `folder` once the body has ended."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    yield temporary
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def load_checkpoint(folder: Path, device: torch.device | None = None) -> Checkpoint:
    """Read a checkpoint folder after verifying every file's checksum; raises `UserError` naming a broken file."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is not a checkpoint: it has no {MANIFEST}")
    try:
        checksums: dict[str, str] = json.loads((folder / MANIFEST).read_text())
    except ValueError as error:
        raise UserError(f"{folder / MANIFEST} is broken ({error})") from error
    for name, checksum in checksums.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing though the checkpoint's manifest lists it")
        if _sha256(folder / name) != checksum:
            raise UserError(f"{folder / name} is broken: its checksum is not the one in the manifest")
    paths = [folder / name for name in checksums]
    return Checkpoint(
        tensors={p.stem: load_file(p, device=str(device or "cpu")) for p in paths if p.suffix == ".safetensors"},
        documents={p.stem: json.loads(p.read_text()) for p in paths if p.suffix == ".json"},
    )


def newest_valid_checkpoint(parent: Path, device: torch.device | None = None) -> Checkpoint | None:
    """Read the last valid checkpoint by name, stepping over broken ones with a warning that names the broken file."""
    for folder in sorted(parent.glob("step-*"), reverse=True):
        try:
            return load_checkpoint(folder, device)
        except UserError as error:
            log.warning("skipping a broken checkpoint: %s", error)
    return None


def keep_last_checkpoints(parent: Path, count: int) -> None:
    """Delete all but the newest `count` checkpoints, and what interrupted saves of the only writer left behind."""
    for folder in [*sorted(parent.glob("step-*"), reverse=True)[count:], *parent.glob(".step-*.writing-*")]:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file of which readers see all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.rename(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
