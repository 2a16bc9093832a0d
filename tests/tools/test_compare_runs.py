"""The comparison of two runs, on real trainings and a real MLflow store."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from promptdiffuser.tracking.store import prepare
from promptdiffuser.training.checkpoint import load_checkpoint, save_checkpoint
from promptdiffuser.training.trainings import BackboneTraining, History, make_resident, train
from tests.tools.compare_runs import main
from tests.training.small_backbone import CPU, short_episodes, small_training

EPISODES = short_episodes()
TRAINING = small_training(EPISODES)


def run(folder: Path, training: BackboneTraining = TRAINING) -> History:
    return train(training, training.learning_task(*make_resident(training, EPISODES, CPU), CPU), folder)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training of six steps."""
    folder = tmp_path_factory.mktemp("reference")
    run(folder)
    return folder


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Return a function that compares runs and returns the exit status with what was printed."""

    def compare(*arguments: object) -> tuple[int, str]:
        status = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert bool(printed.err) == (status == 2)
        return status, printed.out + printed.err

    return compare


def line(printed: str, name: str) -> str:
    [found] = [line for line in printed.splitlines() if name in line]
    return found


def test_repeated_training_is_identical(reference: Path, tmp_path: Path, compare) -> None:
    run(tmp_path)
    status, printed = compare(reference, tmp_path)
    assert status == 0
    assert "6 logged steps in both" in printed
    assert "identical" in line(printed, "train/loss")
    assert "models: equal to the bit" in printed
    assert "differs" not in printed
    assert "time/" not in printed


def test_another_seed_differs_from_the_first_step_on(reference: Path, tmp_path: Path, compare) -> None:
    history = run(tmp_path, replace(TRAINING, seed=2))
    status, printed = compare(reference, tmp_path)
    assert status == 1
    cells = [cell.strip() for cell in line(printed, "train/loss").split("│")[1:-1]]
    assert (cells[1], cells[3]) == ("differs", "1")
    a, b = float(cells[4]), float(cells[5])
    assert b == history[0]["train/loss"]
    assert float(cells[6]) == pytest.approx(abs(a - b) / max(a, b), rel=0.1), "printed with two digits"
    assert "identical" in line(printed, "train/learning_rate")
    assert "models: weights/" in printed


def test_the_step_where_runs_part_is_named(reference: Path, tmp_path: Path, compare) -> None:
    """The other run goes on after step 4 with the batches of another seed."""
    run(tmp_path, replace(TRAINING, optimisation=replace(TRAINING.optimisation, steps=4)))
    status, printed = compare(reference, tmp_path)
    assert (status, "identical" in line(printed, "train/loss")) == (1, True), "4 equal steps, but another model"
    assert "4 logged steps in both; A has 6, B has 4" in printed
    run(tmp_path, replace(TRAINING, seed=2))
    status, printed = compare(reference, tmp_path)
    assert status == 1
    assert line(printed, "train/loss").split("│")[4].strip() == "5"


@pytest.mark.parametrize(("tolerance", "status"), [(0.0, 1), (1e-8, 1), (1e-3, 0)])
def test_weights_may_differ_by_the_tolerance(
    reference: Path, tmp_path: Path, compare, tolerance: float, status: int
) -> None:
    run(tmp_path)
    model = load_checkpoint(tmp_path / "model")
    model.tensors["weights"]["action_head.weight"].mul_(1 + 1e-5)
    save_checkpoint(tmp_path / "model", model.tensors, model.documents)
    found, printed = compare(reference, tmp_path, "--tolerance", tolerance)
    assert found == status
    assert ("weights/action_head.weight torch.float32 (6, 16) differs by up to 1e-05" in printed) == (status == 1)


def test_a_negative_zero_is_another_bit(reference: Path, tmp_path: Path, compare) -> None:
    for folder, sign in (("one", 1), ("two", -1)):
        run(tmp_path / folder)
        model = load_checkpoint(tmp_path / folder / "model")
        model.tensors["weights"]["action_head.bias"] = torch.zeros(6) * sign
        save_checkpoint(tmp_path / folder / "model", model.tensors, model.documents)
    assert compare(tmp_path / "one", tmp_path / "two")[0] == 1


def test_mlflow_runs_are_compared_with_folders(
    reference: Path, tmp_path: Path, compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    tracker = prepare(f"sqlite:///{tmp_path}/mlflow.db", "tests")
    history = run(tmp_path / "training")
    rounded = [entry | {"train/loss": entry["train/loss"] * (1 + 1e-6 * (entry["step"] > 2))} for entry in history]
    same, near = (tracker.run(name, name, None, {}) for name in ("same", "near"))
    same.log_history(history)
    near.log_history(rounded)
    assert compare(reference, same.run_id)[0] == 0
    status, printed = compare(same.run_id, near.run_id)
    assert status == 1
    assert line(printed, "train/loss").split("│")[4].strip() == "3"
    assert "identical" in line(printed, "train/gradient_norm")
    status, printed = compare(same.run_id, near.run_id, "--tolerance", 1e-5)
    assert status == 0
    assert "equal within 1e-05" in line(printed, "train/loss")
    status, printed = compare(reference, "0" * 32)
    assert status == 2
    assert "0" * 32 in printed
    assert printed.count("\n") == 1


def test_what_is_no_run_is_refused_in_one_line(
    reference: Path, tmp_path: Path, compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for missing in (tmp_path, tmp_path / "nowhere"):
        status, printed = compare(reference, missing)
        assert status == 2
        assert str(missing) in printed
        assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("losses_a", "losses_b", "status"),
    [
        ({1: math.nan}, {1: math.nan}, 0),
        ({1: math.inf}, {1: math.inf}, 0),
        ({1: math.nan}, {1: math.inf}, 1),
        ({1: math.nan}, {1: 0.5}, 1),
        ({1: 0.5, 2: 0.5}, {1: None, 2: 0.5}, 1),
        ({1: 0.5}, {2: 0.5}, 1),
    ],
    ids=["both NaN", "both infinite", "NaN and infinite", "NaN and a number", "missing at a step", "no step in both"],
)
def test_values_that_are_no_numbers(
    tmp_path: Path, compare, losses_a: dict[int, float | None], losses_b: dict[int, float | None], status: int
) -> None:
    for folder, losses in (("a", losses_a), ("b", losses_b)):
        history = [{"step": step} | ({} if v is None else {"train/loss": v}) for step, v in losses.items()]
        progress = {"step": len(history), "history": history}
        save_checkpoint(tmp_path / folder / "checkpoints" / "step-1", {}, {"progress": progress})
    assert compare(tmp_path / "a", tmp_path / "b")[0] == status
