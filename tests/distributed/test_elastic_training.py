"""A node leaves while an elastic training runs: it goes on, and ends as it would have on one worker."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from promptdiffuser.data.store import Dataset
from promptdiffuser.training.checkpoint import load_checkpoint
from promptdiffuser.training.trainings import make_resident, train
from tests import tiny
from tests.distributed.elastic import SHRUNK, WHOLE, training_of
from tests.distributed.small_training import STEPS, TASKS

pytestmark = pytest.mark.ray
CPU = torch.device("cpu")


def losses(folder: Path) -> list[float]:
    progress = load_checkpoint(folder / "checkpoints" / f"step-{STEPS:08d}").documents["progress"]
    return [entry["train/loss"] for entry in progress["history"]]


def test_a_training_goes_on_from_its_last_checkpoint_with_the_workers_that_are_left(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    plain, elastic = tmp_path / "plain", tmp_path / "elastic"
    elastic.mkdir()
    command = [sys.executable, "-m", "tests.distributed.elastic", small_dataset.location, str(elastic), "streaming"]
    ended = subprocess.run(
        command,
        cwd=tiny.ROOT,
        env=tiny.environment(elastic),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout
    assert {mark.name for mark in (elastic / "marks").iterdir()} == {WHOLE, SHRUNK}
    training = training_of(small_dataset)
    train(training, training.learning_task(*make_resident(training, small_dataset.read(TASKS), CPU), CPU), plain)
    np.testing.assert_allclose(losses(elastic), losses(plain), rtol=1e-4)
    weights, expected = (load_checkpoint(folder / "model").tensors["weights"] for folder in (elastic, plain))
    # As between any numbers of workers: Adam lets the last bit of a gradient that is zero decide.
    moved = torch.cat([(weights[name] - value).flatten() for name, value in expected.items()])
    assert moved.norm() < 1e-2 * torch.cat([value.flatten() for value in expected.values()]).norm()
    assert moved.abs().median() < 1e-6
