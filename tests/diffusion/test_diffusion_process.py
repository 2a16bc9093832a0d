"""The forward process, predictions, and which configurations are refused.

Axes: B rows, X features, N levels.
"""

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, EDMDPMSolverMultistepScheduler
from torch import Tensor

from promptdiffuser.diffusion.predictions import PREDICTIONS
from promptdiffuser.diffusion.process import Diffusion, DiffusionConfig, visited_steps
from promptdiffuser.diffusion.samplers import SAMPLERS
from promptdiffuser.diffusion.schedules import SCHEDULES, betas, edm

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


def bounded(config: DiffusionConfig, bound: float = 1e6, features: int = 7) -> Diffusion:
    high = torch.full((features,), bound)
    return Diffusion(config, -high, high)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def oracle(schedule: str, num_steps: int) -> DDPMScheduler:
    values = betas(schedule, num_steps)
    scheduler = DDPMScheduler(num_steps, trained_betas=values.tolist())
    # diffusers keeps its constants in float32, where 1 - 0.999 is already wrong by 5e-5 of its value.
    scheduler.alphas_cumprod = (1 - values).cumprod(0)
    return scheduler


@pytest.mark.parametrize("num_steps", [5, 50])
@every_schedule
def test_noised_and_velocity_match_diffusers(schedule: str, num_steps: int) -> None:
    x0, noise, step = normal(64, 7, seed=1), normal(64, 7, seed=2), torch.arange(64) % num_steps
    process, scheduler = bounded(DiffusionConfig(schedule, num_steps, "v")), oracle(schedule, num_steps)
    expected = scheduler.add_noise(x0.double(), noise.double(), step)
    torch.testing.assert_close(process.noised(x0, step, noise), expected.float(), atol=1e-5, rtol=1e-5)
    expected = scheduler.get_velocity(x0.double(), noise.double(), step)
    torch.testing.assert_close(process.target(x0, step, noise), expected.float(), atol=1e-5, rtol=1e-5)


def test_targets_of_the_loss_are_what_is_predicted() -> None:
    x0, noise, step = normal(8, 7, seed=1), normal(8, 7, seed=2), torch.arange(8) % 5
    targets = {name: bounded(DiffusionConfig(prediction=name)).target(x0, step, noise) for name in ("noise", "x0")}
    assert torch.equal(targets["noise"], noise)
    assert torch.equal(targets["x0"], x0)


@every_prediction
@every_schedule
def test_the_target_implies_x0_at_every_level(schedule: str, prediction: str) -> None:
    """Across the registries, so a new prediction whose two halves disagree is found."""
    process = bounded(DiffusionConfig(schedule, 20, prediction))
    x0, noise = normal(10, 7, seed=1).double(), normal(10, 7, seed=2).double()
    for step in range(20):
        step_B = torch.full((10,), step)
        predicted = process.target(x0, step_B, noise)
        actual = process.predict_x0(process.noised(x0, step_B, noise), step, predicted)
        torch.testing.assert_close(actual, x0, atol=1e-5, rtol=1e-5)


def test_v_on_the_edm_schedule_is_the_preconditioning_of_diffusers() -> None:
    """The network reads c_in x; its output becomes x0 by c_skip and c_out (Karras et al. 2022, table 1)."""
    num_steps = 20
    process = bounded(DiffusionConfig("edm", num_steps, "v"))
    scheduler = EDMDPMSolverMultistepScheduler(sigma_data=1.0, prediction_type="v_prediction")
    scheduler.set_timesteps(num_steps)
    predicted, unscaled = normal(6, 7, seed=1), normal(6, 7, seed=2)
    for step, sigma in enumerate(scheduler.sigmas[:-1].flip(0)):
        x_BX = unscaled * (1 + sigma**2).sqrt()
        read_BX = scheduler.precondition_inputs(x_BX, sigma)
        torch.testing.assert_close(read_BX, unscaled, atol=1e-5, rtol=1e-5)
        expected = scheduler.precondition_outputs(x_BX, predicted, sigma)
        torch.testing.assert_close(process.predict_x0(read_BX, step, predicted), expected, atol=1e-5, rtol=1e-5)


def test_values_are_clipped_to_the_bounds_of_each_feature_or_left_alone() -> None:
    low, high = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([1.0, 0.5, 3.0])
    noised, predicted = 5 * normal(50, 3), normal(50, 3, seed=1)
    free = Diffusion(DiffusionConfig(clip=False), low, high)
    for step in range(5):
        clipped = Diffusion(DiffusionConfig(), low, high).predict_x0(noised, step, predicted)
        unclipped = free.predict_x0(noised, step, predicted)
        assert ((clipped >= low) & (clipped <= high)).all()
        assert not ((unclipped >= low) & (unclipped <= high)).all()
        torch.testing.assert_close(clipped, torch.clamp(unclipped, low, high))


@pytest.mark.parametrize(
    ("steps", "sampling_steps", "expected"),
    [
        (5, 0, (4, 3, 2, 1, 0)),
        (5, 5, (4, 3, 2, 1, 0)),
        (10, 5, (9, 7, 5, 3, 1)),
        (50, 1, (49,)),
        (10, 4, (9, 7, 4, 1)),
    ],
)
def test_visited_levels_start_at_the_noisiest(steps: int, sampling_steps: int, expected: tuple[int, ...]) -> None:
    assert visited_steps(DiffusionConfig(steps=steps, sampling_steps=sampling_steps)) == expected


@pytest.mark.parametrize("field", ["schedule", "prediction", "sampler"])
def test_unknown_names_are_refused_with_the_known_ones(field: str) -> None:
    known = {"schedule": SCHEDULES, "prediction": PREDICTIONS, "sampler": SAMPLERS}[field]
    with pytest.raises(ValueError, match=rf"diffusion\.{field} 'other' is unknown; known: {', '.join(known)}"):
        DiffusionConfig(**{field: "other"})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"steps": 0}, r"steps must be at least 1, got 0"),
        ({"steps": -1}, r"steps must be at least 1, got -1"),
        ({"sampling_steps": 6}, r"sampling_steps must be between 0 and diffusion\.steps \(5\), got 6"),
        ({"sampling_steps": -1}, r"sampling_steps must be between .* got -1"),
        ({"temperature": 0.0}, r"temperature must be above 0 and finite, got 0"),
        ({"temperature": float("nan")}, r"temperature must be above 0 and finite, got nan"),
    ],
)
def test_impossible_numbers_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"diffusion\.{named}"):
        DiffusionConfig(**values)


@pytest.mark.parametrize(
    ("schedule", "steps", "sampling_steps"), [("cosine", 50, 0), ("sigmoid", 50, 0), ("linear", 5, 0), ("edm", 50, 5)]
)
def test_a_sampler_that_does_not_fit_its_schedule_is_refused(schedule: str, steps: int, sampling_steps: int) -> None:
    with pytest.raises(ValueError, match=rf"sampler 'heun' does not fit diffusion\.schedule '{schedule}' .*; take"):
        DiffusionConfig(schedule, steps, sampler="heun", sampling_steps=sampling_steps)
    assert DiffusionConfig(schedule, steps, sampler="ddim", sampling_steps=sampling_steps).steps == steps


def test_remedies_of_the_refusal_work() -> None:
    for remedy in (("vp", 5), ("edm", 20), ("linear", 50)):
        assert DiffusionConfig(*remedy, sampler="heun").schedule == remedy[0]


def test_sigmas_that_do_not_exceed_the_data_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of five deviations of the data leaves its mean visible, so pure noise is the wrong start."""
    monkeypatch.setitem(SCHEDULES.registered, "short", partial(edm, sigma_max=5.0))
    with pytest.raises(ValueError, match=r"diffusion\.schedule 'short' with diffusion\.steps 20 keeps .* 0\.038"):
        DiffusionConfig("short", 20)


@every_prediction
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_chain_goes_on_with_the_x0_that_it_is_steered_to(sampler: str, prediction: str) -> None:
    """Steered by nothing the samples are the same, steered to a point they end there, within the bounds."""
    process, noise_KBX = bounded(DiffusionConfig(sampler=sampler, prediction=prediction), 0.5), normal(5, 8, 7)
    seen: list[tuple[int, Tensor]] = []

    def predict(x_BX: Tensor, step_B: Tensor) -> Tensor:
        return 0.3 * x_BX

    def look(x0_BX: Tensor, level: int) -> Tensor:
        seen.append((level, x0_BX))
        return x0_BX

    assert torch.equal(process.sample(predict, noise_KBX, look), process.sample(predict, noise_KBX))
    assert sorted({level for level, _ in seen}) == [0, 1, 2, 3, 4]
    assert all(x0_BX.abs().max() <= 0.5 for _, x0_BX in seen)
    point = torch.linspace(-1, 1, 7)
    steered = process.sample(predict, noise_KBX, lambda x0_BX, level: point.expand_as(x0_BX))
    torch.testing.assert_close(steered, point.clamp(-0.5, 0.5).expand_as(steered), atol=1e-5, rtol=1e-5)
