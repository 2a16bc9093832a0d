"""The numbers of a tiny quickstart are those that are stored: who changes them raises the VERSION of a stage.

A stage's key has the version of its numbers, so finished stages with other numbers are not taken for the present ones.
Where this fails on purpose, raise the VERSION of each stage from the first that differs, in pipeline/stages, and store
the numbers anew:

    python -m tests.test_golden OUTPUTS

with the outputs of the tiny quickstart (tests/tiny.py).
"""

import json
import platform
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from promptdiffuser.data import open_dataset
from tests import tiny

GOLDEN = Path(__file__).with_name("golden.json")
STAGES = ("collect", "pretrain", "train_diffuser", "adapt", "evaluate")
SAME_PROCESSOR, OTHER_PROCESSOR = 1e-6, 0.05
"""Largest relative difference of a loss. Processors round differently, which training amplifies. Contacts amplify it so
much more that returns are compared on the same processor only."""


def versions() -> dict[str, int]:
    return {name: import_module(f"promptdiffuser.pipeline.stages.{name}").VERSION for name in STAGES}


def machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0].partition(':')[2].strip()}, torch {torch.__version__}" if names else platform.platform()


def numbers(outputs: Path) -> dict[str, Any]:
    """Return the loss curves and returns of the tiny quickstart in a folder."""
    folder = outputs / "quickstart"
    losses = {}
    for name in ("pretrain", "diffuser-context"):
        (checkpoint,) = sorted(folder.glob(f"{name}-*/checkpoints/step-*"))[-1:]
        history = json.loads((checkpoint / "progress.json").read_text())["history"]
        losses[name] = {
            key: [entry[key] for entry in history if key in entry]
            for key in history[-1]
            if key.startswith("train/loss") or key == "train/gradient_norm"
        }
    (dataset,) = folder.glob("collect-*/dataset")
    records = open_dataset(dataset).manifest.files.values()
    return {
        "dataset": sum(record.return_mean for record in records) / len(records),
        "losses": losses,
        "returns": {method: result["per_task"] for method, result in tiny.results(outputs).items()},
    }


@pytest.mark.ray
def test_numbers_move_only_with_a_version(tiny_run: Path) -> None:
    golden, found = json.loads(GOLDEN.read_text()), numbers(tiny_run)
    assert golden["versions"] == versions(), "a VERSION was raised: store the numbers anew, see above"
    same = golden["machine"] == machine()
    tolerance = SAME_PROCESSOR if same else OTHER_PROCESSOR
    assert found["dataset"] == pytest.approx(golden["numbers"]["dataset"], rel=tolerance)
    for name, curves in golden["numbers"]["losses"].items():
        assert found["losses"][name].keys() == curves.keys()
        for key, curve in curves.items():
            assert found["losses"][name][key] == pytest.approx(curve, rel=tolerance), (name, key)
    assert found["returns"].keys() == golden["numbers"]["returns"].keys()
    if same:
        for method, returns in golden["numbers"]["returns"].items():
            assert found["returns"][method] == pytest.approx(returns, rel=tolerance), method


if __name__ == "__main__":
    document = {"versions": versions(), "machine": machine(), "numbers": numbers(Path(sys.argv[1]))}
    GOLDEN.write_text(json.dumps(document, indent=1) + "\n")
