"""Training follows the chosen prediction, sampler and network: the loss's target, and gradients through the chain."""

from dataclasses import replace

import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.diffusion.predictions import PREDICTIONS
from promptdiffuser.diffusion.process import DiffusionConfig
from promptdiffuser.diffusion.prompt_space import PromptSpace
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


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_denoising_loss_of_a_silent_network_is_the_target_it_misses(
    diffuser_training: DiffuserTraining, episodes: Episodes, prediction: str
) -> None:
    diffusion = replace(diffuser_training.diffusion, prediction=prediction)
    task = learning(replace(diffuser_training, diffusion=diffusion), episodes)
    for parameter in task.model.network[-1].parameters():
        parameter.data.zero_()
    prompts, step_B = task.pool.prompts, torch.arange(12) % 3
    noise_BX = torch.randn(12, 2 * 27, generator=torch.Generator().manual_seed(0))
    shown_B = torch.ones(12, dtype=torch.bool)
    losses_B = task.diffuser.denoising_loss(prompts, task.pool.transitions, step_B, noise_BX, shown_B)
    missed_BX = task.diffuser.diffusion.target(PromptSpace.encode(prompts), step_B, noise_BX)
    torch.testing.assert_close(losses_B, missed_BX.square().mean(dim=1))


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
    start, gradients_GP = flat.vector.clone(), task.share(flat, 0).gradients_GP
    for loss, gradient in zip(("loss_dm", "loss_dt"), gradients_GP, strict=True):
        assert gradient.norm() > 0
        unit = gradient / gradient.norm()
        losses = []
        for offset in (STEP, -STEP):
            flat.vector.copy_(start + offset * unit)
            losses.append(task.share(flat, 0).scalars[loss].item())
        flat.vector.copy_(start)
        slope = (losses[0] - losses[1]) / (2 * STEP)
        assert slope == pytest.approx(float(gradient.norm()), rel=0.02)
