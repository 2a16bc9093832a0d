"""What decides which episodes are collected, and what a damaged dataset needs."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from promptdiffuser.data import open_dataset
from promptdiffuser.experiment import Experiment
from promptdiffuser.pipeline.stages import collect
from tests import tiny


def test_experiments_of_different_seeds_share_a_dataset() -> None:
    first = Experiment(name="some")
    assert collect.stage(dataclasses.replace(first, seed=1)).folder == collect.stage(first).folder
    other = dataclasses.replace(first, collection=dataclasses.replace(first.collection, seed=1))
    assert collect.stage(other).folder != collect.stage(first).folder


@pytest.mark.ray
def test_a_damaged_dataset_gets_its_file_back(tiny_run: Path, tmp_path: Path) -> None:
    """The same command makes the file that was changed and no other, and the dataset is the one it was."""
    (made,) = tiny_run.glob("quickstart/collect-*")
    copy = tmp_path / "quickstart" / made.name
    shutil.copytree(made, copy)
    damaged, *others = sorted((copy / "dataset").rglob("*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    before = {path: path.stat().st_mtime_ns for path in others}
    command = [sys.executable, str(tiny.ROOT / "jobs" / "collect.py"), "quickstart", *tiny.OPTIONS]
    ended = subprocess.run(
        [*command, "--outputs", str(tmp_path)],
        cwd=tmp_path,
        env=tiny.environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "is missing or was changed" in ended.stdout
    assert {path: path.stat().st_mtime_ns for path in others} == before
    assert open_dataset(copy / "dataset").manifest.digest == open_dataset(made / "dataset").manifest.digest
