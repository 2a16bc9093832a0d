"""Training follows the chosen prediction, sampler and network: gradients of both losses through the chain."""

from dataclasses import replace

import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.diffusion.process import DiffusionConfig
from promptdiffuser.models.denoiser import DenoiserConfig
from promptdiffuser.training.diffuser_objective import DiffuserLearning
from promptdiffuser.training.engine import FlatParameters
from promptdiffuser.training.trainings import DiffuserTraining, make_resident

CPU = torch.device("cpu")
STEP = 1e-3
"""Of finite differences: wide for float32's rounding of the loss, narrow for the kinks that ReLU and clipping make."""
TINY = {"hidden": 16, "depth": 1, "time_features": 4, "context_features": 4, "context_hidden": 8}


def learning(training: DiffuserTraining, episodes: Episodes) -> DiffuserLearning:
    return training.learning_task(*make_resident(training, episodes, CPU), CPU)


@pytest.mark.parametrize(
    ("diffusion", "denoiser"),
    [
        (DiffusionConfig("vp", 5, "x0", "heun"), DenoiserConfig(**TINY)),
        (DiffusionConfig("edm", 12, "v", "dpm-solver", 4), DenoiserConfig("transformer", **TINY)),
        (
            DiffusionConfig("cosine", 10, "v", "ddim", 3, temperature=0.5),
            DenoiserConfig(**TINY, condition_dropout=0.2, condition_weight=1.5),
        ),
    ],
)
def test_gradients_of_both_losses_agree_with_finite_differences(
    diffuser_training: DiffuserTraining, episodes: Episodes, diffusion: DiffusionConfig, denoiser: DenoiserConfig
) -> None:
    task = learning(replace(diffuser_training, diffusion=diffusion, denoiser=denoiser), episodes)
    flat = FlatParameters(task.model)
    start, gradients_GP = flat.vector.clone(), task.local_gradients(flat, 0).gradients_GP
    for loss, gradient in zip(("loss_dm", "loss_dt"), gradients_GP, strict=True):
        assert gradient.norm() > 0
        unit = gradient / gradient.norm()
        losses = []
        for offset in (STEP, -STEP):
            flat.vector.copy_(start + offset * unit)
            losses.append(task.local_gradients(flat, 0).scalars[loss].item())
        flat.vector.copy_(start)
        slope = (losses[0] - losses[1]) / (2 * STEP)
        assert slope == pytest.approx(float(gradient.norm()), rel=0.02)
