"""Trainings that take fractions of a GPU share it, as far as a machine without one can show."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import tiny

pytestmark = pytest.mark.ray


def test_two_trainings_of_two_workers_share_a_declared_gpu_and_torch_must_see_it(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.distributed.shared_gpu", str(tmp_path)],
        cwd=tiny.ROOT,
        env=tiny.environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["returned"] == 2 * [{"gpus": [0], "sum": 2}]
    if torch.cuda.is_available():
        assert told["refusal"] is None
    else:
        assert f"torch {torch.__version__} there sees no CUDA device" in told["refusal"]
