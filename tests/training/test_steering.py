"""Guidance at sampling time: the gradient it follows, how far it goes, and that it lowers the loss it follows.

Axes: K levels, B prompts, X features of a flattened prompt.
"""

import math
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.windows import Segments
from promptdiffuser.diffusion.samplers import SAMPLERS
from promptdiffuser.methods.shared.steering import FewShotSteering, SamplingGuidanceConfig
from promptdiffuser.training.backbone_objective import squared_action_errors
from promptdiffuser.training.diffuser_objective import DiffuserLearning
from promptdiffuser.training.engine import Engine, identity_reduce
from promptdiffuser.training.trainings import DiffuserTraining, make_resident

CPU = torch.device("cpu")
NUM_PROMPTS = 6


@pytest.fixture(scope="module")
def trained(diffuser_training: DiffuserTraining, episodes: Episodes) -> DiffuserLearning:
    """Return a diffuser after thirty updates on twelve episodes."""
    training = replace(diffuser_training, optimisation=replace(diffuser_training.optimisation, steps=30))
    task = training.learning_task(*make_resident(training, episodes, CPU), CPU)
    engine = Engine(task, training.optimisation, identity_reduce)
    for _ in range(30):
        engine.advance()
    return task


def conditions_of(learning: DiffuserLearning) -> Segments:
    return learning.pool.prompts_at(np.arange(NUM_PROMPTS) % 4)


def steering_of(learning: DiffuserLearning, **config: Any) -> FewShotSteering:
    """Return the guidance towards the task of the first four episodes."""
    return FewShotSteering(
        learning.diffuser,
        conditions_of(learning),
        learning.backbone,
        learning.windows,
        learning.pool.index.select(slice(4)),
        SamplingGuidanceConfig(**({"batch_steps": 12} | config)),
        (0, "test"),
    )


def generated(learning: DiffuserLearning, steering: FewShotSteering | None) -> Segments:
    context = learning.pool.contexts_at(np.tile(np.arange(4), (NUM_PROMPTS, 1)))
    noise_KBX = learning.diffuser.draw_noise(NUM_PROMPTS, 0, "test")
    with torch.no_grad():
        return learning.diffuser.generate(conditions_of(learning), context, noise_KBX, steer=steering)


def loss_on_all_windows(learning: DiffuserLearning, prompts: Segments) -> Tensor:
    """Return each prompt's mean squared action error (B,) over every window of the first four episodes."""
    index = learning.pool.index
    windows = [(e, s) for e in range(4) for s in range(0, int(index.lengths[e]), 4)]
    history = learning.windows.segments(*np.array(windows).T, 4)
    losses = []
    for row in range(len(prompts)):
        errors = squared_action_errors(learning.backbone, history, prompts.select(torch.full((len(windows),), row)))
        losses.append(errors[history.valid].mean())
    return torch.stack(losses)


def equal(left: Segments, right: Segments) -> bool:
    return all(torch.equal(getattr(left, field.name), getattr(right, field.name)) for field in fields(left))


def in_double(segments: Segments) -> Segments:
    names = ("returns_to_go", "states", "actions", "rewards")
    return replace(segments, **{name: getattr(segments, name).double() for name in names})


def test_the_gradient_agrees_with_finite_differences(trained: DiffuserLearning) -> None:
    steering = steering_of(trained)
    steering.backbone = deepcopy(trained.backbone).double()
    steering.conditions = in_double(steering.conditions)
    windows = trained.windows
    names = ("returns_to_go", "states", "actions", "rewards")
    steering.windows = replace(windows, **{name: getattr(windows, name).double() for name in names})
    x0_BX = 0.5 * torch.randn(NUM_PROMPTS, 54, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = steering.planner.at(3)
    _, history = steering.windows.windows(3, plan)
    assert len(history) == 3 * NUM_PROMPTS

    def loss(x_BX: Tensor) -> Tensor:
        prompts = steering.diffuser.space.decode(x_BX, steering.conditions)
        behind = prompts.select(torch.arange(NUM_PROMPTS).repeat_interleave(3))
        errors = squared_action_errors(steering.backbone, history, behind).flatten(1).unflatten(0, (NUM_PROMPTS, 3))
        valid = history.valid.unflatten(0, (NUM_PROMPTS, 3)).sum((1, 2))
        return errors.sum((1, 2)) / (6 * valid)

    gradient_BX, step = steering.gradient(x0_BX, 3), 1e-6
    for feature in range(54):
        there = torch.zeros(54, dtype=torch.float64)
        there[feature] = step
        slope_B = (loss(x0_BX + there) - loss(x0_BX - there)) / (2 * step)
        torch.testing.assert_close(gradient_BX[:, feature], slope_B, atol=1e-8, rtol=1e-5)
    # The backbone does not see the rewards, the last feature of a step.
    assert (gradient_BX.unflatten(1, (2, 27)) != 0).any(0).sum() == 2 * 26


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_weight_of_zero_changes_nothing(trained: DiffuserLearning, sampler: str) -> None:
    trained.diffuser.diffusion.config = replace(trained.diffuser.diffusion.config, sampler=sampler)
    try:
        steering = steering_of(trained, weight=0.0)
        assert equal(generated(trained, steering), generated(trained, None))
        assert steering.gradient_steps == 0
        guided = steering_of(trained, weight=0.3)
        assert not equal(generated(trained, guided), generated(trained, None))
        assert guided.gradient_steps == (5 if sampler == "heun" else 3)
    finally:
        trained.diffuser.diffusion.config = replace(trained.diffuser.diffusion.config, sampler="ddpm")


@pytest.mark.parametrize(("match_norms", "weight"), [(True, 0.5), (False, 3000.0)])
def test_guidance_lowers_the_few_shot_loss(trained: DiffuserLearning, match_norms: bool, weight: float) -> None:
    before_B = loss_on_all_windows(trained, generated(trained, None))
    steering = steering_of(trained, weight=weight, match_norms=match_norms, batch_steps=40)
    after_B = loss_on_all_windows(trained, generated(trained, steering))
    assert (after_B < before_B - 1e-4).all()


def test_a_matched_step_is_as_long_as_the_noise_that_is_left(trained: DiffuserLearning) -> None:
    x0_BX = trained.diffuser.space.encode(conditions_of(trained))
    for level, deviation in enumerate(trained.diffuser.diffusion.levels.deviation[:-1]):
        moved_BX = steering_of(trained, weight=0.2)(x0_BX, level)
        length = 0.2 * math.sqrt(54) * deviation
        torch.testing.assert_close((moved_BX - x0_BX).norm(dim=1), torch.full((NUM_PROMPTS,), length))
        raw = steering_of(trained, weight=7.0, match_norms=False)
        torch.testing.assert_close(raw(x0_BX, level), x0_BX - 7.0 * raw.gradient(x0_BX, 0))


def test_the_weight_is_scheduled_over_the_levels(trained: DiffuserLearning) -> None:
    x0_BX = trained.diffuser.space.encode(conditions_of(trained))
    steering = steering_of(trained, weight=6.0, weight_schedule="linear", initial_weight=0.0, match_norms=False)
    for level, weight in enumerate((2.0, 4.0, 6.0)):
        steering.gradient_steps = 0
        expected = x0_BX - weight * steering.gradient(x0_BX, 0)
        torch.testing.assert_close(steering(x0_BX, level), expected)
    fading = steering_of(trained, weight=0.0, weight_schedule="linear", initial_weight=6.0)
    assert torch.equal(fading(x0_BX, 2), x0_BX)
    assert fading.gradient_steps == 0


def test_guided_prompts_stay_within_the_bounds_of_the_data(trained: DiffuserLearning) -> None:
    space = trained.diffuser.space
    x_BX = space.encode(generated(trained, steering_of(trained, weight=50.0)))
    assert (x_BX >= space.low - 1e-5).all()
    assert (x_BX <= space.high + 1e-5).all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("weight", -1.0, "adaptation.guided.weight must not be negative"),
        ("weight", math.inf, "adaptation.guided.weight must not be negative and must be finite"),
        ("weight_schedule", "steep", "adaptation.guided.weight_schedule 'steep' is unknown; known: constant"),
        ("initial_weight", 1.0, "adaptation.guided.initial_weight needs adaptation.guided.weight_schedule"),
        ("batch_steps", 0, "adaptation.guided.batch_steps must be at least 1"),
    ],
)
def test_what_cannot_guide_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        SamplingGuidanceConfig(**{field: value})
