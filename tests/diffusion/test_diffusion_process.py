"""The forward process and the reverse chain, against diffusers and against distributions whose answer is known.

Axes: B rows, X features, C mixture components.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from promptdiffuser.diffusion.process import Diffusion, DiffusionConfig
from promptdiffuser.diffusion.schedules import SCHEDULES, betas

MEAN, STD = 0.7, 0.5
"""The Gaussian that x0 comes from."""

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def bounded(schedule: str, num_steps: int, bound: float = 1e6, features: int = 1) -> Diffusion:
    high = torch.full((features,), bound)
    return Diffusion(DiffusionConfig(schedule, num_steps), -high, high)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def oracle(schedule: str, num_steps: int) -> DDPMScheduler:
    values = betas(schedule, num_steps)
    scheduler = DDPMScheduler(num_steps, trained_betas=values.tolist(), variance_type="fixed_small", clip_sample=False)
    # diffusers keeps its constants in float32, where 1 - 0.999 is already wrong by 5e-5 of its value.
    scheduler.alphas_cumprod = (1 - values).cumprod(0)
    scheduler.one = scheduler.one.double()
    return scheduler


@pytest.mark.parametrize("num_steps", [5, 50])
@every_schedule
def test_noised_matches_diffusers(schedule: str, num_steps: int) -> None:
    x0, noise = normal(64, 7, seed=1), normal(64, 7, seed=2)
    step = torch.arange(64) % num_steps
    expected = oracle(schedule, num_steps).add_noise(x0.double(), noise.double(), step)
    actual = bounded(schedule, num_steps, features=7).noised(x0, step, noise)
    torch.testing.assert_close(actual, expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_steps", [5, 50])
@every_schedule
def test_every_reverse_step_matches_diffusers(schedule: str, num_steps: int) -> None:
    """Same input, same predicted noise, same added noise: the same posterior mean and the same deviation."""
    scheduler, shape = oracle(schedule, num_steps), (16, 7)
    # diffusers draws what it adds on leaving step n; the chain is handed the same draws, indexed by the lower step.
    noise_NBX = torch.stack([normal(*shape, seed=n) for n in range(1, num_steps + 1)])
    inputs_NBX, predictions_NBX = [], []

    def predict_noise(x_BX: Tensor, step_B: Tensor) -> Tensor:
        inputs_NBX.append(x_BX)
        predictions_NBX.append(0.9 * scheduler.alphas_cumprod[step_B[0]].mul(-1).add(1).sqrt().float() * x_BX)
        return predictions_NBX[-1]

    final_BX = bounded(schedule, num_steps, features=shape[1]).sample(predict_noise, noise_NBX)
    outputs_NBX = [*inputs_NBX[1:], final_BX]
    assert torch.equal(inputs_NBX[0], noise_NBX[-1])
    for step, x_BX, prediction_BX, output_BX in zip(
        reversed(range(num_steps)), inputs_NBX, predictions_NBX, outputs_NBX, strict=True
    ):
        generator = torch.Generator().manual_seed(step)
        expected = scheduler.step(prediction_BX, step, x_BX.double(), generator=generator).prev_sample
        torch.testing.assert_close(output_BX, expected.float(), atol=1e-5, rtol=1e-5)


def optimal_noise_predictor(
    process: Diffusion, weight_C: Tensor, mean_C: Tensor, std_C: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return E[noise | x_n] for x0 from a one-dimensional mixture of Gaussians."""

    def predict_noise(x_B1: Tensor, step_B: Tensor) -> Tensor:
        abar = process.abar_N[step_B[0]].double()
        variance_C = abar * std_C**2 + 1 - abar
        offset_BC = x_B1.double() - abar.sqrt() * mean_C
        posterior_BC = (weight_C.log() - variance_C.log() / 2 - offset_BC**2 / (2 * variance_C)).softmax(dim=1)
        noise_BC = (1 - abar).sqrt() * offset_BC / variance_C
        return (posterior_BC * noise_BC).sum(dim=1, keepdim=True).float()

    return predict_noise


def sample_gaussian(schedule: str, num_steps: int, num_samples: int) -> Tensor:
    process = bounded(schedule, num_steps)
    predict_noise = optimal_noise_predictor(process, torch.ones(1), torch.tensor([MEAN]), torch.tensor([STD]))
    return process.sample(predict_noise, normal(num_steps, num_samples, 1))


@every_schedule
def test_chain_with_the_optimal_predictor_has_its_exact_mean_and_deviation(schedule: str) -> None:
    """With a Gaussian x0 every reverse step is affine in x_n, so mean and variance follow a recursion."""
    beta_N = betas(schedule, 50).numpy()
    abar_N = np.cumprod(1 - beta_N)
    mean, variance = 0.0, 1.0
    for beta, abar, previous in zip(beta_N[::-1], abar_N[::-1], [*abar_N[-2::-1], 1.0], strict=True):
        slope = STD**2 * np.sqrt(abar) / (STD**2 * abar + 1 - abar)  # of E[x0 | x_n] in x_n
        from_x0, from_xn = np.sqrt(previous) * beta / (1 - abar), np.sqrt(1 - beta) * (1 - previous) / (1 - abar)
        mean = from_x0 * (MEAN + slope * (mean - np.sqrt(abar) * MEAN)) + from_xn * mean
        variance = (from_x0 * slope + from_xn) ** 2 * variance + beta * (1 - previous) / (1 - abar)
    samples = sample_gaussian(schedule, 50, 20_000)
    assert float(samples.mean()) == pytest.approx(mean, abs=0.015)
    assert float(samples.std()) == pytest.approx(np.sqrt(variance), rel=0.02)


@every_schedule
def test_chain_with_the_optimal_predictor_recovers_a_gaussian(schedule: str) -> None:
    """Few steps lose spread, as DDPM's smaller reverse variance is exact for a point only; many steps do not."""
    samples = sample_gaussian(schedule, 500, 10_000)
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(samples.std()) == pytest.approx(STD, rel=0.03)


@every_schedule
def test_chain_with_the_optimal_predictor_recovers_a_mixture(schedule: str) -> None:
    weight_C, mean_C, std_C = torch.tensor([0.3, 0.7]), torch.tensor([-1.0, 0.8]), torch.tensor([0.3, 0.2])
    process = bounded(schedule, 100)
    samples = process.sample(optimal_noise_predictor(process, weight_C, mean_C, std_C), normal(100, 5_000, 1))
    mean = float((weight_C * mean_C).sum())
    variance = float((weight_C * (mean_C**2 + std_C**2)).sum()) - mean**2
    assert float(samples.mean()) == pytest.approx(mean, abs=0.03)
    assert float(samples.var()) == pytest.approx(variance, rel=0.05)
    assert float((samples < 0).float().mean()) == pytest.approx(0.3, abs=0.02)


@every_schedule
def test_samples_stay_within_the_bounds_of_each_feature(schedule: str) -> None:
    """Whatever the network says: an untrained one predicts an x0 far outside."""
    low, high = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([1.0, 0.5, 3.0])
    process = Diffusion(DiffusionConfig(schedule, 5), low, high)
    noise_NBX = 5 * normal(5, 100, 3)
    for step in range(5):
        x0_BX = process.predict_x0(noise_NBX[0], step, noise_NBX[1])
        assert ((x0_BX >= low) & (x0_BX <= high)).all()
    samples_BX = process.sample(lambda x_BX, step_B: -x_BX, noise_NBX)
    assert ((samples_BX >= low) & (samples_BX <= high)).all()
    assert (samples_BX.std(0) > 0).all()


def test_values_inside_the_bounds_are_not_clipped() -> None:
    process, x0_BX, noise_BX = bounded("vp", 5, bound=5.0, features=3), normal(10, 3, seed=1), normal(10, 3, seed=2)
    for step in range(5):
        noised_BX = process.noised(x0_BX, torch.full((10,), step), noise_BX)
        torch.testing.assert_close(process.predict_x0(noised_BX, step, noise_BX), x0_BX, atol=1e-5, rtol=1e-5)


@every_schedule
def test_gradient_through_the_chain_is_that_of_finite_differences(schedule: str) -> None:
    process, noise_NBX = bounded(schedule, 5, bound=2.0, features=3), normal(5, 4, 3).double()

    def samples_of(weight: Tensor) -> Tensor:
        return process.sample(
            lambda x_BX, step_B: torch.tanh(weight[0] * x_BX) + weight[1] * step_B[:, None], noise_NBX
        )

    weight = torch.tensor([0.5, 0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(samples_of(weight).sum(), weight)[0].abs().min() > 0
    assert torch.autograd.gradcheck(samples_of, weight)
