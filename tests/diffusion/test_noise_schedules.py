"""Noise schedules against formulas written down again in numpy, against diffusers, and their common contract."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EDMDPMSolverMultistepScheduler

from promptdiffuser.diffusion.process import DiffusionConfig
from promptdiffuser.diffusion.schedules import LARGEST_BETA, LARGEST_FINAL_SIGNAL, SCHEDULES, betas

STEPS = [5, 10, 20, 50, 100]


@pytest.mark.parametrize("num_steps", STEPS)
def test_vp_matches_its_formula(num_steps: int) -> None:
    n = np.arange(1, num_steps + 1, dtype=np.float64)
    expected = 1 - np.exp(-0.1 / num_steps - 0.5 * (10 - 0.1) * (2 * n - 1) / num_steps**2)
    np.testing.assert_allclose(betas("vp", num_steps), expected, atol=1e-12)


@pytest.mark.parametrize("num_steps", STEPS)
def test_vp_keeps_the_signal_of_the_continuous_process(num_steps: int) -> None:
    """The steps sum the integral of beta(t) = 0.1 + 9.9 t exactly."""
    t = np.arange(1, num_steps + 1) / num_steps
    signal = np.cumprod(1 - betas("vp", num_steps).numpy())
    np.testing.assert_allclose(signal, np.exp(-0.1 * t - 9.9 * t**2 / 2), rtol=1e-10)


def test_vp_of_five_steps_has_the_published_values() -> None:
    np.testing.assert_allclose(betas("vp", 5), [0.1959, 0.4588, 0.6358, 0.7549, 0.8350], atol=5e-5)


@pytest.mark.parametrize("num_steps", STEPS)
def test_cosine_matches_its_formula(num_steps: int) -> None:
    t = np.arange(num_steps + 1) / num_steps
    signal = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    expected = np.minimum(1 - signal[1:] / signal[:-1], LARGEST_BETA)
    np.testing.assert_allclose(betas("cosine", num_steps), expected, atol=1e-12)


@pytest.mark.parametrize("num_steps", STEPS)
def test_cosine_matches_diffusers(num_steps: int) -> None:
    oracle = DDPMScheduler(num_steps, beta_schedule="squaredcos_cap_v2")
    torch.testing.assert_close(betas("cosine", num_steps).float(), oracle.betas, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_steps", STEPS)
def test_linear_matches_its_formula(num_steps: int) -> None:
    thousand = np.array([1e-4 + (0.02 - 1e-4) * n / (num_steps - 1) for n in range(num_steps)])
    expected = np.minimum(thousand * 1000 / num_steps, LARGEST_BETA)
    np.testing.assert_allclose(betas("linear", num_steps), expected, atol=1e-12)


@pytest.mark.parametrize("num_steps", STEPS)
def test_linear_matches_diffusers(num_steps: int) -> None:
    oracle = DDPMScheduler(num_steps, beta_start=0.1 / num_steps, beta_end=20 / num_steps, beta_schedule="linear")
    expected = oracle.betas.clamp(max=LARGEST_BETA)
    torch.testing.assert_close(betas("linear", num_steps).float(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_steps", STEPS)
def test_sigmoid_matches_its_formula(num_steps: int) -> None:
    falling = 1 / (1 + np.exp(6 * np.arange(num_steps + 1) / num_steps - 3))
    signal = (falling - falling[-1]) / (falling[0] - falling[-1])
    expected = np.minimum(1 - signal[1:] / signal[:-1], LARGEST_BETA)
    np.testing.assert_allclose(betas("sigmoid", num_steps), expected, atol=1e-12)


@pytest.mark.parametrize("num_steps", STEPS)
def test_edm_has_the_sigmas_of_its_formula_and_of_diffusers(num_steps: int) -> None:
    signal = (1 - betas("edm", num_steps)).cumprod(0)
    sigma = ((1 - signal) / signal).sqrt().flip(0)
    ends = 80 ** (1 / 7), 0.002 ** (1 / 7)
    expected = (ends[0] + np.arange(num_steps) / (num_steps - 1) * (ends[1] - ends[0])) ** 7
    np.testing.assert_allclose(sigma, expected, rtol=1e-8)
    oracle = EDMDPMSolverMultistepScheduler()
    oracle.set_timesteps(num_steps)
    torch.testing.assert_close(sigma.float(), oracle.sigmas[:-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_adds_noise_each_step_and_ends_in_noise(name: str, num_steps: int) -> None:
    values = betas(name, num_steps)
    signal = (1 - values).cumprod(0)
    assert values.shape == (num_steps,)
    assert values.dtype == torch.float64
    assert ((values > 0) & (values < 1)).all()
    assert (signal.diff() < 0).all()
    assert 0 < signal[-1] <= LARGEST_FINAL_SIGNAL


def test_a_schedule_that_does_not_end_in_noise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """DDPM's own betas, made for 1,000 steps, keep 95 % of the signal over 5."""
    monkeypatch.setitem(SCHEDULES.registered, "unscaled", lambda n: torch.linspace(1e-4, 0.02, n, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"diffusion\.schedule 'unscaled' with diffusion\.steps 5 keeps .* 0\.95"):
        DiffusionConfig(schedule="unscaled", steps=5)
    assert DiffusionConfig(schedule="unscaled", steps=1000).steps == 1000
