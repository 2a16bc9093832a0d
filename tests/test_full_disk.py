"""A full disk: every way to write ends in one line that names the folder, and leaves nothing half-written."""

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from promptdiffuser.data.storage import Storage
from promptdiffuser.errors import UserError
from promptdiffuser.files import writing_below
from promptdiffuser.rollout.results import BlockResults
from promptdiffuser.tracking.journal import Entry, append
from promptdiffuser.training.checkpoint import save_checkpoint, write_json
from tests.full_disk import small_disk

NUMBERS = np.random.default_rng(0).random(100_000)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", kilobytes=64) as folder:
        yield folder


def to_storage(folder: Path) -> None:
    with Storage.at(folder).writing("below/part.parquet") as file:
        file.write(NUMBERS.tobytes())


def plainly(folder: Path) -> None:
    with writing_below(folder):
        (folder / "table.csv").write_text(str(NUMBERS.tolist()))


WAYS: dict[str, Callable[[Path], object]] = {
    "checkpoint": lambda folder: save_checkpoint(folder / "model", {"weights": {"w": torch.tensor(NUMBERS)}}, {}),
    "JSON": lambda folder: write_json(folder / "progress.json", NUMBERS.tolist()),
    "block": lambda folder: BlockResults(folder / "blocks").write("a", pd.DataFrame({"return": NUMBERS})),
    "dataset": to_storage,
    "journal": lambda folder: append(folder / "journal", Entry("run", "text", {"text": str(NUMBERS.tolist())})),
    "anything else in a job": plainly,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_is_one_line_that_names_the_folder(way: str, disk: Path) -> None:
    with pytest.raises(UserError, match="No space left on device") as failed:
        WAYS[way](disk)
    assert str(disk) in str(failed.value)
    assert "\n" not in str(failed.value)
    assert [path for path in disk.rglob("*") if ".writing" in path.name] == []


def test_a_write_protected_disk_is_named_too(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(UserError, match=f"{disk} cannot be written .*Read-only file system.*make it writable"):
        write_json(disk / "progress.json", {})


def test_a_file_elsewhere_that_cannot_be_read_is_no_full_disk(tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "/elsewhere/data")
    with pytest.raises(PermissionError), writing_below(tmp_path):
        raise error
