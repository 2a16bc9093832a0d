"""Samplers, against diffusers and against distributions whose answer is known, across the registries.

Axes: B rows, X features, K levels that a chain visits, C mixture components.
"""

from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
)
from torch import Tensor

from promptdiffuser.diffusion.predictions import PREDICTIONS
from promptdiffuser.diffusion.process import Diffusion, DiffusionConfig
from promptdiffuser.diffusion.samplers import SAMPLERS
from promptdiffuser.diffusion.schedules import SCHEDULES, betas

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

WEIGHT_C, MEAN_C, STD_C = torch.tensor([[0.3, 0.7], [-1.0, 0.8], [0.3, 0.2]], dtype=torch.float64)
"""The mixture that x0 comes from."""
TYPES = {"noise": "epsilon", "x0": "sample", "v": "v_prediction"}
"""Predictions as diffusers calls them."""
ORACLES: dict[str, Callable[..., Any]] = {
    "ddpm": lambda *args, **options: DDPMScheduler(*args, variance_type="fixed_small", clip_sample=False, **options),
    "ddim": lambda *args, **options: DDIMScheduler(*args, clip_sample=False, **options),
    "dpm-solver": lambda *args, **options: DPMSolverMultistepScheduler(*args, final_sigmas_type="zero", **options),
    "heun": HeunDiscreteScheduler,
}

Predict = Callable[[Tensor, Tensor], Tensor]


def fits(schedule: str, sampler: str, steps: int = 50) -> bool:
    try:
        DiffusionConfig(schedule, steps, sampler=sampler)
    except ValueError as error:
        assert "does not fit" in str(error)  # noqa: PT017
        return False
    return True


COMPATIBLE = [(schedule, sampler) for schedule, sampler in product(SCHEDULES, SAMPLERS) if fits(schedule, sampler)]
every_pair = pytest.mark.parametrize(("schedule", "sampler"), COMPATIBLE)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def bounded(config: DiffusionConfig, bound: float = 1e6, features: int = 1) -> Diffusion:
    high = torch.full((features,), bound)
    return Diffusion(config, -high, high)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predictor(process: Diffusion, x0_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Predict:
    """Return the prediction that says x0 = x0_of(x, signal, deviation)."""
    abar_N = (1 - betas(process.config.schedule, process.num_steps)).cumprod(0)

    def predict(x_BX: Tensor, step_B: Tensor) -> Tensor:
        abar = abar_N[int(step_B[0])]
        signal, deviation = abar.sqrt(), (1 - abar).sqrt()
        x0_BX = x0_of(x_BX, signal, deviation)
        noise_BX = (x_BX - signal * x0_BX) / deviation
        return process.prediction.target(x0_BX, noise_BX, signal, deviation)

    return predict


def optimal(x_B1: Tensor, signal: Tensor, deviation: Tensor) -> Tensor:
    """Return E[x0 | x] for the mixture."""
    variance_C = (signal * STD_C) ** 2 + deviation**2
    offset_BC = x_B1 - signal * MEAN_C
    posterior_BC = (WEIGHT_C.log() - variance_C.log() / 2 - offset_BC**2 / (2 * variance_C)).softmax(dim=1)
    return (posterior_BC * (MEAN_C + signal * STD_C**2 / variance_C * offset_BC)).sum(dim=1, keepdim=True)


def chain_of_diffusers(scheduler: Any, predict: Predict, x_BX: Tensor) -> Tensor:
    """Run a scheduler of diffusers, which asks at timesteps and draws the noise of its k-th step with the seed k."""
    for number, timestep in enumerate(scheduler.timesteps):
        read_BX = scheduler.scale_model_input(x_BX, timestep)
        predicted_BX = predict(read_BX, timestep.long().expand(len(x_BX)))
        generator = {"generator": torch.Generator().manual_seed(number)} if isinstance(scheduler, DDPMScheduler) else {}
        x_BX = scheduler.step(predicted_BX, timestep, x_BX, **generator).prev_sample
    return x_BX


@pytest.mark.parametrize(("steps", "sampling_steps"), [(50, 50), (50, 25)])
@every_prediction
@every_pair
def test_whole_chains_match_diffusers(
    schedule: str, sampler: str, prediction: str, steps: int, sampling_steps: int
) -> None:
    """Same start, same predictions, same added noise: the same samples."""
    process = bounded(DiffusionConfig(schedule, steps, prediction, sampler, sampling_steps), features=4)
    predict = predictor(process, lambda x_BX, signal, deviation: torch.tanh(x_BX + 0.3 * deviation))
    noise_KBX = torch.stack([normal(8, 4, seed=k) for k in reversed(range(sampling_steps))])
    # diffusers draws with the seed 0 on leaving the first level; the chain's start comes after that.
    noise_KBX = torch.cat([noise_KBX[1:], normal(1, 8, 4, seed=1000)])
    actual = process.sample(predict, noise_KBX)

    values = betas(schedule, steps)
    scheduler = ORACLES[sampler](
        steps, trained_betas=values.tolist(), prediction_type=TYPES[prediction], timestep_spacing="trailing"
    )
    # diffusers keeps its constants in float32, where 1 - 0.999 is already wrong by 5e-5 of its value.
    scheduler.alphas_cumprod = (1 - values).cumprod(0)
    scheduler.one = scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    scheduler.set_timesteps(sampling_steps)
    start_BX = noise_KBX[-1] * ((1 + process.levels.sigma(0) ** 2) ** 0.5 if sampler == "heun" else 1.0)
    expected = chain_of_diffusers(scheduler, predict, start_BX)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_dpm_solver_on_edm_matches_the_edm_solver_of_diffusers() -> None:
    """Theirs runs on unscaled data; both end at noise zero, where the scales agree."""
    steps = 20
    process = bounded(DiffusionConfig("edm", steps, "v", "dpm-solver"), features=4)
    noise_KBX = normal(steps, 8, 4)
    actual = process.sample(lambda x_BX, step_B: torch.sin(x_BX + step_B[:, None]), noise_KBX)

    scheduler = EDMDPMSolverMultistepScheduler(sigma_data=1.0, prediction_type="v_prediction")
    scheduler.set_timesteps(steps)
    x_BX = noise_KBX[-1] * scheduler.init_noise_sigma
    for number, timestep in enumerate(scheduler.timesteps):
        predicted_BX = torch.sin(scheduler.scale_model_input(x_BX, timestep) + (steps - 1 - number))
        x_BX = scheduler.step(predicted_BX, timestep, x_BX).prev_sample
    torch.testing.assert_close(actual, x_BX, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("schedule", "steps"), [("edm", 20), ("vp", 5)])
def test_heun_matches_the_algorithm_of_karras_et_al_in_numpy(schedule: str, steps: int) -> None:
    """Written down again for unscaled data, by slopes, as their algorithm 1 without churn."""
    process = bounded(DiffusionConfig(schedule, steps, "x0", "heun"), features=4)
    noise_KBX = normal(steps, 8, 4)
    actual = process.sample(lambda x_BX, step_B: torch.tanh(x_BX), noise_KBX)

    signal = (1 - betas(schedule, steps)).cumprod(0).numpy()[::-1]
    sigmas = [*np.sqrt((1 - signal) / signal), 0.0]
    x_BX = noise_KBX[-1].numpy() * np.sqrt(1 + sigmas[0] ** 2)

    def slope(x_BX: np.ndarray, sigma: float) -> np.ndarray:
        return (x_BX - np.tanh(x_BX / np.sqrt(1 + sigma**2))) / sigma

    for here, there in pairwise(sigmas):
        euler_BX = x_BX + (there - here) * slope(x_BX, here)
        mean_slope = (slope(x_BX, here) + slope(euler_BX, there)) / 2 if there else slope(x_BX, here)
        x_BX = x_BX + (there - here) * mean_slope
    np.testing.assert_allclose(actual, x_BX, atol=1e-5, rtol=1e-5)


def test_the_default_chain_has_the_arithmetic_of_diffusion_ql_to_the_bit() -> None:
    """Results of trainings depend on every bit; this is float32 with constants rounded once."""
    steps, features = 5, 6
    process = bounded(DiffusionConfig(), bound=2.0, features=features)
    noise_NBX = normal(steps, 32, features).float()
    beta_N = betas("vp", steps)
    abar_N = (1 - beta_N).cumprod(0)
    previous_N = torch.cat([torch.ones(1, dtype=torch.float64), abar_N[:-1]])
    from_x0_N = (beta_N * previous_N.sqrt() / (1 - abar_N)).float()
    from_xn_N = ((1 - previous_N) * (1 - beta_N).sqrt() / (1 - abar_N)).float()
    std_N = (beta_N * (1 - previous_N) / (1 - abar_N)).sqrt().float()

    x_BX = noise_NBX[-1]
    for n in reversed(range(steps)):
        x0_BX = (x_BX - (1 - abar_N).sqrt().float()[n] * torch.sin(x_BX + n)) / abar_N.sqrt().float()[n]
        x_BX = from_x0_N[n] * x0_BX.clamp(-2, 2) + from_xn_N[n] * x_BX
        if n:
            x_BX = x_BX + std_N[n] * noise_NBX[n - 1]
    assert torch.equal(process.sample(lambda x, step_B: torch.sin(x + step_B[:, None]), noise_NBX), x_BX)


@every_prediction
@every_pair
def test_chains_with_the_optimal_denoiser_recover_a_mixture(schedule: str, sampler: str, prediction: str) -> None:
    """In float32, as in use. The vp schedule leaves 8 % of the signal at its end, which moves the mean by 0.03."""
    process = bounded(DiffusionConfig(schedule, 100, prediction, sampler))
    predict = predictor(process, optimal)
    samples = process.sample(lambda x, step_B: predict(x.double(), step_B).float(), normal(100, 4_000, 1).float())
    mean = float((WEIGHT_C * MEAN_C).sum())
    variance = float((WEIGHT_C * (MEAN_C**2 + STD_C**2)).sum()) - mean**2
    assert samples.dtype == torch.float32
    assert float(samples.mean()) == pytest.approx(mean, abs=0.05)
    assert float(samples.var()) == pytest.approx(variance, rel=0.06)
    assert float((samples < 0).float().mean()) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ancestral_chain_has_the_exact_mean_and_deviation_of_a_gaussian(schedule: str) -> None:
    """With a Gaussian x0 every reverse step is affine in x_n, so mean and variance follow a recursion."""
    center, std = 0.7, 0.5
    beta_N = betas(schedule, 50).numpy()
    abar_N = np.cumprod(1 - beta_N)
    mean, variance = 0.0, 1.0
    for beta, abar, previous in zip(beta_N[::-1], abar_N[::-1], [*abar_N[-2::-1], 1.0], strict=True):
        slope = std**2 * np.sqrt(abar) / (std**2 * abar + 1 - abar)  # of E[x0 | x_n] in x_n
        from_x0, from_xn = np.sqrt(previous) * beta / (1 - abar), np.sqrt(1 - beta) * (1 - previous) / (1 - abar)
        mean = from_x0 * (center + slope * (mean - np.sqrt(abar) * center)) + from_xn * mean
        variance = (from_x0 * slope + from_xn) ** 2 * variance + beta * (1 - previous) / (1 - abar)
    process = bounded(DiffusionConfig(schedule, 50))

    def posterior_mean(x_BX: Tensor, signal: Tensor, deviation: Tensor) -> Tensor:
        return center + std**2 * signal / (std**2 * signal**2 + deviation**2) * (x_BX - signal * center)

    samples = process.sample(predictor(process, posterior_mean), normal(50, 20_000, 1))
    assert float(samples.mean()) == pytest.approx(mean, abs=0.015)
    assert float(samples.std()) == pytest.approx(np.sqrt(variance), rel=0.02)


def test_second_order_samplers_need_fewer_steps() -> None:
    """The reason to have them: at 10 steps they are nearer to the spread of many steps than DDIM."""

    def spread(sampler: str, sampling_steps: int) -> float:
        process = bounded(DiffusionConfig("vp", 200, "x0", sampler, sampling_steps))
        return float(process.sample(predictor(process, optimal), normal(sampling_steps or 200, 4_000, 1)).std())

    exact = spread("ddim", 0)
    errors = {sampler: abs(spread(sampler, 10) - exact) for sampler in ("ddim", "dpm-solver", "heun")}
    assert errors["dpm-solver"] < errors["ddim"] / 2
    assert errors["heun"] < errors["ddim"] / 2


@every_sampler
def test_samples_stay_within_the_bounds_of_each_feature(sampler: str) -> None:
    """Whatever the network says: an untrained one predicts an x0 far outside. Heun ends with an Euler step."""
    low, high = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([1.0, 0.5, 3.0])
    process = Diffusion(DiffusionConfig(sampler=sampler), low, high)
    samples_BX = process.sample(lambda x_BX, step_B: -x_BX, 5 * normal(5, 100, 3).float())
    assert ((samples_BX >= low - 1e-6) & (samples_BX <= high + 1e-6)).all()
    assert (samples_BX.std(0) > 0).all()


@every_sampler
def test_low_temperature_narrows_the_samples(sampler: str) -> None:
    spreads = []
    for temperature in (0.5, 1.0):
        process = bounded(DiffusionConfig("edm", 50, "x0", sampler, temperature=temperature))
        x0_of = lambda x, signal, deviation: signal * x / (signal**2 + deviation**2)  # noqa: E731  # x0 ~ N(0, 1)
        spreads.append(float(process.sample(predictor(process, x0_of), normal(50, 4_000, 1)).std()))
    assert spreads[0] == pytest.approx(spreads[1] / 2, rel=1e-5)


@every_prediction
@every_sampler
def test_gradient_through_the_chain_is_that_of_finite_differences(sampler: str, prediction: str) -> None:
    process, noise_KBX = bounded(DiffusionConfig("vp", 5, prediction, sampler), 2.0, features=3), normal(5, 4, 3)

    def samples_of(weight: Tensor) -> Tensor:
        return process.sample(
            lambda x_BX, step_B: torch.tanh(weight[0] * x_BX) + weight[1] * step_B[:, None], noise_KBX
        )

    weight = torch.tensor([0.5, 0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(samples_of(weight).sum(), weight)[0].abs().min() > 0
    assert torch.autograd.gradcheck(samples_of, weight)


@every_prediction
@every_sampler
def test_chains_run_where_the_bounds_are(sampler: str, prediction: str) -> None:
    """The device `meta` stands for an accelerator: mixing it with CPU tensors fails in the same places."""
    high = torch.ones(3, device="meta")
    process = Diffusion(DiffusionConfig("vp", 10, prediction, sampler, 5), -high, high)
    noise_KBX = torch.randn(5, 4, 3, device="meta")
    assert process.sample(lambda x_BX, step_B: x_BX * step_B[:, None], noise_KBX).device.type == "meta"
    step_B = torch.zeros(4, dtype=torch.int64, device="meta")
    assert process.target(noise_KBX[0], step_B, noise_KBX[1]).device.type == "meta"
