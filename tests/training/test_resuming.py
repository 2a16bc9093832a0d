"""A training that is interrupted ends with the same bits as one that is not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.errors import UserError
from promptdiffuser.training.checkpoint import load_checkpoint
from promptdiffuser.training.trainings import (
    BackboneTraining,
    DiffuserTraining,
    History,
    Training,
    make_resident,
    train,
)
from tests.training.damage import flip_a_byte, truncate


class InterruptedAtStepError(Exception):
    """What a machine that goes away looks like to the training."""


def interrupt_at(step: int) -> Callable[[History], None]:
    def on_checkpoint(history: History) -> None:
        if history[-1]["step"] == step:
            raise InterruptedAtStepError

    return on_checkpoint


GUIDANCE: dict[str, dict[str, Any]] = {
    "diffuser": {},
    "diffuser that remembers a mean": {"projection": "complement-mean", "weight_schedule": "linear"},
    "diffuser that remembers a basis": {"projection": "basis", "project": "update"},
    "diffuser of alternating losses": {"projection": "sum", "losses": "alternating"},
}


@pytest.fixture(params=["backbone", *GUIDANCE])
def training(
    request: pytest.FixtureRequest, backbone_training: BackboneTraining, diffuser_training: DiffuserTraining
) -> Training:
    """Return a training of six steps that checkpoints every second one and whose state is all in use."""
    if request.param == "backbone":
        return replace(backbone_training, backbone=replace(backbone_training.backbone, dropout=0.3))
    guidance = replace(diffuser_training.guidance, **GUIDANCE[request.param])
    return replace(diffuser_training, guidance=guidance, guidance_start=1)


def run(
    training: Training,
    episodes: Episodes,
    folder: Path,
    on_checkpoint: Callable[[History], None] = lambda history: None,
    device: str = "cpu",
) -> History:
    """Train in what could be a new process: nothing but the folder is handed on."""
    resident, pool = make_resident(training, episodes, torch.device(device))
    task = training.learning_task(resident, pool, torch.device(device))
    return train(training, task, folder, on_checkpoint=on_checkpoint)


def results(history: History) -> History:
    return [{name: value for name, value in entry.items() if not name.startswith("time/")} for entry in history]


def assert_equal_bits(first: Path, second: Path) -> None:
    one, other = load_checkpoint(first), load_checkpoint(second)
    assert one.tensors.keys() == other.tensors.keys()
    for file, tensors in one.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other.tensors[file][name]), f"{file}: {name}"


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_resumed_training_equals_an_unbroken_one(
    training: Training, episodes: Episodes, tmp_path: Path, device: str
) -> None:
    unbroken = run(training, episodes, tmp_path / "unbroken", device=device)
    for step in (2, 4):
        with pytest.raises(InterruptedAtStepError):
            run(training, episodes, tmp_path / "broken", interrupt_at(step), device)
        assert not (tmp_path / "broken" / "model").exists()
    resumed = run(training, episodes, tmp_path / "broken", device=device)
    assert results(resumed) == results(unbroken)
    assert [entry["step"] for entry in resumed] == [1, 2, 3, 4, 5, 6]
    assert_equal_bits(tmp_path / "unbroken" / "model", tmp_path / "broken" / "model")
    for step in (4, 6):
        name = f"checkpoints/step-{step:08d}"
        assert_equal_bits(tmp_path / "unbroken" / name, tmp_path / "broken" / name)


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, Path.unlink])
def test_training_steps_back_from_a_broken_checkpoint(
    training: Training,
    episodes: Episodes,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    run(training, episodes, tmp_path / "unbroken")
    with pytest.raises(InterruptedAtStepError):
        run(training, episodes, tmp_path / "broken", interrupt_at(4))
    damage(tmp_path / "broken" / "checkpoints" / "step-00000004" / "engine.safetensors")
    run(training, episodes, tmp_path / "broken")
    assert "step-00000004/engine.safetensors" in caplog.text
    assert_equal_bits(tmp_path / "unbroken" / "model", tmp_path / "broken" / "model")


def test_finished_training_is_not_repeated_but_reports_once_more(
    training: Training, episodes: Episodes, tmp_path: Path
) -> None:
    first = run(training, episodes, tmp_path)
    reports: list[History] = []
    assert run(training, episodes, tmp_path, reports.append) == first
    assert reports == [first]


def test_a_checkpoint_of_another_rule_is_refused(
    diffuser_training: DiffuserTraining, episodes: Episodes, tmp_path: Path
) -> None:
    with pytest.raises(InterruptedAtStepError):
        run(diffuser_training, episodes, tmp_path, interrupt_at(2))
    other = replace(diffuser_training, guidance=replace(diffuser_training.guidance, projection="complement-mean"))
    with pytest.raises(UserError, match="does not hold what this training remembers as 'mean'"):
        run(other, episodes, tmp_path)


def test_another_seed_trains_another_model(
    backbone_training: BackboneTraining, episodes: Episodes, tmp_path: Path
) -> None:
    run(backbone_training, episodes, tmp_path / "one")
    run(replace(backbone_training, seed=2), episodes, tmp_path / "two")
    with pytest.raises(AssertionError):
        assert_equal_bits(tmp_path / "one" / "model", tmp_path / "two" / "model")


def test_workers_that_are_not_the_writer_write_nothing(
    backbone_training: BackboneTraining, episodes: Episodes, tmp_path: Path
) -> None:
    resident, pool = make_resident(backbone_training, episodes, torch.device("cpu"))
    task = backbone_training.learning_task(resident, pool, torch.device("cpu"))
    history = train(backbone_training, task, tmp_path / "outputs", is_writer=False)
    assert history[-1]["step"] == 6
    assert not (tmp_path / "outputs").exists()


def test_training_lowers_the_loss(backbone_training: BackboneTraining, episodes: Episodes, tmp_path: Path) -> None:
    longer = replace(backbone_training.optimisation, steps=60, checkpoint_every=60)
    history = run(replace(backbone_training, optimisation=longer), episodes, tmp_path)
    assert history[-1]["train/loss"] < 0.9 * history[0]["train/loss"]
