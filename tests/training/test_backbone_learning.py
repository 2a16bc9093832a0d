"""Pre-training's loss and gradient, computed by one worker, by two, and row by row."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.training.backbone_objective import BackboneLossConfig, freeze
from promptdiffuser.training.engine import FlatParameters
from promptdiffuser.training.trainings import BackboneTraining, make_resident
from tests.training.workers import shares_of_one_and_of_two_workers

CPU = torch.device("cpu")


@pytest.mark.parametrize(("window_steps", "size"), [(0, 4), (3, 3)])
def test_loss_is_the_mean_over_the_valid_steps_of_the_batch(
    backbone_training: BackboneTraining, episodes: Episodes, window_steps: int, size: int
) -> None:
    """Each window decoded alone and cut at its episode's end, so nothing is padded and nothing is weighted."""
    training = replace(backbone_training, loss=replace(backbone_training.loss, window_steps=window_steps))
    resident, pool = make_resident(training, episodes, CPU)
    task = training.learning_task(resident, pool, CPU)
    plan = training.planner(pool.index).at(0)
    errors = []
    for row in range(8):
        rows = np.array([row])
        left = int(episodes.lengths[plan.episodes[row]] - plan.starts[row])
        history = resident.segments(plan.episodes[rows], plan.starts[rows], min(left, size))
        actions = task.model(history, pool.prompts_at(plan.prompt_episodes[rows]))
        errors.append((actions - history.actions).square().flatten())
    assert len({len(error) for error in errors}) > 1, "no window of this batch is padded"
    expected = torch.cat(errors).mean()
    flat = FlatParameters(task.model)
    share = task.local_gradients(flat, 0)
    torch.testing.assert_close(share.scalars["loss"], expected)
    torch.testing.assert_close(share.gradients_GP, flat.gradient(expected)[None])


@pytest.mark.parametrize("batch_size", [1, 8])
def test_shares_of_two_workers_sum_to_that_of_one(
    backbone_training: BackboneTraining, episodes: Episodes, batch_size: int
) -> None:
    """With a batch of one, a worker has nothing to do and adds zero."""
    training = replace(backbone_training, loss=BackboneLossConfig(batch_size, precision="fp32"))
    one, first, second = shares_of_one_and_of_two_workers(training, episodes)
    assert one.gradients_GP.abs().max() > 0
    torch.testing.assert_close(first.gradients_GP + second.gradients_GP, one.gradients_GP)
    torch.testing.assert_close(first.scalars["loss"] + second.scalars["loss"], one.scalars["loss"])


def test_every_step_sees_another_batch(backbone_training: BackboneTraining, episodes: Episodes) -> None:
    task = backbone_training.learning_task(*make_resident(backbone_training, episodes, CPU), CPU)
    flat = FlatParameters(task.model)
    losses = [task.local_gradients(flat, step).scalars["loss"].item() for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_bf16_computes_the_same_loss_roughly(backbone_training: BackboneTraining, episodes: Episodes) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        training = replace(backbone_training, loss=BackboneLossConfig(8, precision=precision))
        task = training.learning_task(*make_resident(training, episodes, CPU), CPU)
        losses[precision] = task.local_gradients(FlatParameters(task.model), 0).scalars["loss"]
        assert losses[precision].dtype == torch.float32
    assert losses["bf16"] != losses["fp32"]
    torch.testing.assert_close(losses["bf16"], losses["fp32"], rtol=0.02, atol=0)


def test_training_has_dropout_and_a_frozen_backbone_has_neither_it_nor_gradients(
    backbone_training: BackboneTraining, episodes: Episodes
) -> None:
    task = backbone_training.learning_task(*make_resident(backbone_training, episodes, CPU), CPU)
    assert task.model.training
    frozen = freeze(task.model)
    assert not frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize(
    "values", [{"batch_size": 0}, {"window_steps": -1}, {"precision": "fp8"}, {"accumulation": 0}], ids=str
)
def test_impossible_loss_is_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        BackboneLossConfig(**values)
