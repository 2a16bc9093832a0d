"""The gradient of a batch in pieces, in every number format, and compiled."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.training.backbone_objective import BackboneLossConfig
from promptdiffuser.training.engine import FlatParameters, LocalGradients
from promptdiffuser.training.gradients import accumulate
from promptdiffuser.training.guidance import GuidanceConfig
from promptdiffuser.training.trainings import BackboneTraining, DiffuserTraining, Training, make_resident

CPU = torch.device("cpu")


def share_of(training: Training, episodes: Episodes) -> LocalGradients:
    task = training.learning_task(*make_resident(training, episodes, CPU), CPU)
    return task.local_gradients(FlatParameters(task.model), 4)


@pytest.mark.parametrize("pieces", [2, 3, 8, 20])
def test_pieces_of_a_batch_add_up_to_it(
    backbone_training: BackboneTraining, diffuser_training: DiffuserTraining, episodes: Episodes, pieces: int
) -> None:
    for whole, cut in (
        (
            backbone_training,
            replace(backbone_training, loss=BackboneLossConfig(8, precision="fp32", accumulation=pieces)),
        ),
        (
            diffuser_training,
            replace(diffuser_training, guidance=GuidanceConfig(batch_size=8, precision="fp32", accumulation=pieces)),
        ),
    ):
        expected, found = share_of(whole, episodes), share_of(cut, episodes)
        torch.testing.assert_close(found.gradients_GP, expected.gradients_GP, rtol=1e-4, atol=1e-7)
        assert found.scalars.keys() == expected.scalars.keys()
        for name, value in expected.scalars.items():
            torch.testing.assert_close(found.scalars[name], value)


def test_fp16_keeps_gradients_that_would_round_to_zero() -> None:
    """The gradient with respect to the product is far below fp16's smallest number before the loss is scaled."""
    model = nn.Linear(16, 16)
    parameters, inputs = FlatParameters(model), torch.randn(32, 16, generator=torch.Generator().manual_seed(0))

    def loss_of(part: slice) -> Tensor:
        return model(inputs[part]).float().square().sum() * 1e-9

    _, exact = accumulate(parameters, loss_of, 32, 1, "fp32", CPU)
    _, found = accumulate(parameters, loss_of, 32, 1, "fp16", CPU)
    assert 0 < exact.abs().max() < 6e-8
    torch.testing.assert_close(found, exact, rtol=0.05, atol=2e-2 * float(exact.abs().max()))


def test_where_the_scaled_loss_overflows_a_smaller_factor_is_taken() -> None:
    model = nn.Linear(16, 16)
    parameters, inputs = FlatParameters(model), torch.randn(32, 16, generator=torch.Generator().manual_seed(0))

    def loss_of(part: slice) -> Tensor:
        return model(inputs[part]).float().square().sum() * 10

    _, exact = accumulate(parameters, loss_of, 32, 1, "fp32", CPU)
    _, found = accumulate(parameters, loss_of, 32, 1, "fp16", CPU)
    assert (exact.abs().max() * 2**16 > 65_504).item(), "nothing overflows here"
    torch.testing.assert_close(found, exact, rtol=0.05, atol=1e-2 * float(exact.abs().max()))


def test_a_gradient_that_is_infinite_at_every_scale_stays_so() -> None:
    model = nn.Linear(4, 1)
    _, gradient = accumulate(
        FlatParameters(model), lambda part: model(torch.full((2, 4), torch.inf)).sum(), 2, 1, "fp16", CPU
    )
    assert not gradient.isfinite().all()


def test_fp16_trains_the_backbone_like_fp32(backbone_training: BackboneTraining, episodes: Episodes) -> None:
    exact = share_of(backbone_training, episodes)
    half = share_of(replace(backbone_training, loss=BackboneLossConfig(8, precision="fp16")), episodes)
    torch.testing.assert_close(half.scalars["loss"], exact.scalars["loss"], rtol=5e-3, atol=0)
    apart = (half.gradients_GP - exact.gradients_GP).norm() / exact.gradients_GP.norm()
    assert 0 < apart < 0.02


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
def test_the_compiled_network_has_the_same_gradient(backbone_training: BackboneTraining, episodes: Episodes) -> None:
    exact = share_of(backbone_training, episodes)
    compiled = share_of(
        replace(backbone_training, loss=BackboneLossConfig(8, precision="fp32", compile=True)), episodes
    )
    torch.testing.assert_close(compiled.scalars["loss"], exact.scalars["loss"])
    torch.testing.assert_close(compiled.gradients_GP, exact.gradients_GP, rtol=1e-3, atol=1e-6)
