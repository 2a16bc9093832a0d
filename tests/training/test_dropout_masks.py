"""Dropout masks are drawn at an address: those of two workers differ, and torch's global generator stays as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.windows import ResidentEpisodes
from promptdiffuser.training.engine import Engine, identity_reduce
from promptdiffuser.training.trainings import BackboneTraining, DiffuserTraining, Training, make_resident

CPU = torch.device("cpu")


@pytest.fixture
def with_dropout(backbone_training: BackboneTraining) -> BackboneTraining:
    return replace(backbone_training, backbone=replace(backbone_training.backbone, dropout=0.5))


def masks(training: BackboneTraining, episodes: Episodes, held: slice, updates: int = 1) -> list[Tensor]:
    """Return which of the embeddings (B, L, D) of some episodes' rows each update of their worker keeps."""
    _, pool = make_resident(training, episodes, CPU)
    numbers = np.arange(len(episodes))[held]
    windows = ResidentEpisodes.build(episodes.select(numbers), numbers, training.normaliser(), CPU, len(episodes))
    task, seen = training.learning_task(windows, pool, CPU), []
    task.model.dropout.register_forward_hook(lambda module, inputs, output: seen.append(output != 0))
    engine = Engine(task, training.optimisation, identity_reduce)
    for _ in range(updates):
        engine.advance()
    return seen


def test_workers_have_masks_of_their_own(with_dropout: BackboneTraining, episodes: Episodes) -> None:
    (one,), (other,) = (masks(with_dropout, episodes, slice(first, None, 2)) for first in (0, 1))
    rows, steps = min(len(one), len(other)), min(one.shape[1], other.shape[1])
    shared = one[:rows, :steps].flatten(1)[:, None] == other[:rows, :steps].flatten(1)
    assert rows > 1
    assert shared.float().mean() < 0.7  # independent masks agree in half of their elements
    assert one.float().mean() == pytest.approx(0.5, abs=0.1)


def test_masks_are_those_of_their_address_and_change_with_every_update(
    with_dropout: BackboneTraining, episodes: Episodes
) -> None:
    first, second = masks(with_dropout, episodes, slice(None), updates=2)
    torch.manual_seed(1)
    again, _ = masks(with_dropout, episodes, slice(None), updates=2)
    assert torch.equal(first, again)
    assert first.shape != second.shape or not torch.equal(first, second)


@pytest.mark.parametrize("name", ["dropout", "no dropout", "diffuser"])
def test_an_update_leaves_the_global_generator_as_it_was(
    name: str,
    with_dropout: BackboneTraining,
    backbone_training: BackboneTraining,
    diffuser_training: DiffuserTraining,
    episodes: Episodes,
) -> None:
    trainings: dict[str, Training] = {
        "dropout": with_dropout,
        "no dropout": backbone_training,
        "diffuser": diffuser_training,
    }
    training = trainings[name]
    task = training.learning_task(*make_resident(training, episodes, CPU), CPU)
    engine, before = Engine(task, training.optimisation, identity_reduce), torch.get_rng_state()
    engine.advance()
    assert torch.equal(torch.get_rng_state(), before)
