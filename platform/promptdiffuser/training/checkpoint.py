"""Checkpoint folders: safetensors and JSON with a checksum each, seen whole or not at all.

    CHECKPOINT/*.safetensors  *.json  manifest.json     (manifest: file name -> sha256)

Nothing in it is pickled, so reading a checkpoint never runs code, and its manifest names no file outside the folder.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptdiffuser.errors import UserError
from promptdiffuser.files import replacing, restore, sha256, tidy, writing

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
        checksums = {path.name: sha256(path) for path in sorted(new.iterdir())}
        (new / MANIFEST).write_text(json.dumps(checksums, indent=1) + "\n")
    return folder


def read_manifest(folder: Path) -> dict[str, str]:
    """Return file name -> sha256 of a checkpoint folder, which identify its content.

    Raises:
        UserError: There is no manifest, it is broken, lists nothing, or names a file outside the folder.
    """
    restore(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is not a checkpoint: it has no {MANIFEST}")
    try:
        checksums: Any = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is broken ({error})") from error
    if not isinstance(checksums, dict) or not all(isinstance(checksum, str) for checksum in checksums.values()):
        raise UserError(f"{path} is broken: it is no list of files with their checksums")
    if not checksums:
        raise UserError(f"{path} is broken: it lists no files")
    for name in checksums:
        if name in ("", "..") or Path(name).name != name:
            raise UserError(f"{path} names {name!r}; a checkpoint's files lie in its own folder")
    return checksums


def check_checkpoint(folder: Path) -> dict[str, str]:
    """Verify every file's checksum and return the manifest; raises `UserError` naming a broken file."""
    checksums = read_manifest(folder)
    for name, checksum in checksums.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing though the checkpoint's manifest lists it")
        if sha256(folder / name) != checksum:
            raise UserError(f"{folder / name} is broken: its checksum is not the one in the manifest")
    return checksums


def is_whole(folder: Path) -> bool:
    """Tell whether there is a checkpoint of which every file is as it was written."""
    try:
        check_checkpoint(folder)
    except UserError:
        return False
    return True


def load_checkpoint(folder: Path, device: torch.device | None = None) -> Checkpoint:
    """Read a checkpoint folder after verifying every file's checksum; raises `UserError` naming a broken file."""
    tensors, documents = dict[str, dict[str, Tensor]](), dict[str, Any]()
    for path in (folder / name for name in check_checkpoint(folder)):
        try:
            if path.suffix == ".safetensors":
                tensors[path.stem] = load_file(path, device=str(device or "cpu"))
            elif path.suffix == ".json":
                documents[path.stem] = json.loads(path.read_text())
        except (SafetensorError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is broken ({error})") from error
    return Checkpoint(tensors, documents)


def newest_valid_checkpoint(parent: Path, device: torch.device | None = None) -> Checkpoint | None:
    """Read the last valid checkpoint by name, stepping over broken ones with a warning that names the broken file."""
    for folder in sorted(parent.glob("step-*"), reverse=True):
        try:
            return load_checkpoint(folder, device)
        except UserError as error:
            log.warning("skipping a broken checkpoint: %s", error)
    return None


def keep_last_checkpoints(parent: Path, count: int) -> None:
    """Delete all but the newest `count` checkpoints, and what killed writers left behind."""
    tidy(parent)
    for folder in sorted(parent.glob("step-*"), reverse=True)[count:]:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file of which readers see all or nothing."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n")
