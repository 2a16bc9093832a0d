"""The two losses of a Prompt Diffuser and their gradients."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.diffusion.process import DiffusionConfig
from promptdiffuser.models.denoiser import Denoiser
from promptdiffuser.training.backbone_objective import squared_action_errors
from promptdiffuser.training.diffuser_objective import DiffuserLearning
from promptdiffuser.training.engine import Engine, FlatParameters, identity_reduce
from promptdiffuser.training.trainings import DiffuserTraining, make_resident
from tests.training.workers import shares_of_one_and_of_two_workers

CPU = torch.device("cpu")
STEP = 1e-6
"""Of finite differences in float64: narrow for the kinks that ReLU and clipping make."""


def learning(training: DiffuserTraining, episodes: Episodes) -> DiffuserLearning:
    return training.learning_task(*make_resident(training, episodes, CPU), CPU)


def in_float64(task: DiffuserLearning) -> DiffuserLearning:
    """Return the task with models and data in float64, where finite differences are exact to many digits."""

    def exact(value: Any) -> Any:
        if is_dataclass(value):
            return replace(value, **{f.name: exact(getattr(value, f.name)) for f in fields(value)})
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    task.model.double()
    task.backbone.double()
    task.windows, task.pool, task.diffuser.space = (exact(x) for x in (task.windows, task.pool, task.diffuser.space))
    return task


def assert_agrees_with_finite_differences(flat: FlatParameters, gradient: Tensor, loss: Callable[[], Tensor]) -> None:
    start, generator = flat.vector.clone(), torch.Generator().manual_seed(0)
    for direction in (gradient, *(torch.randn(start.shape, generator=generator).double() for _ in range(3))):
        unit, values = direction / direction.norm(), []
        for offset in (STEP, -STEP):
            flat.vector.copy_(start + offset * unit)
            values.append(loss().item())
        slope = (values[0] - values[1]) / (2 * STEP)
        assert slope == pytest.approx(float(gradient.dot(unit)), rel=0, abs=1e-6 * float(gradient.norm()))
    flat.vector.copy_(start)


@pytest.mark.parametrize(
    ("loss", "index", "guidance"),
    [
        ("loss_dm", 0, {}),
        ("loss_dt", 1, {}),
        ("loss_dt", 1, {"path_steps": 3}),
        ("loss_dt", 1, {"path": "one-step"}),
    ],
)
def test_gradients_agree_with_finite_differences(
    diffuser_training: DiffuserTraining, episodes: Episodes, loss: str, index: int, guidance: dict[str, Any]
) -> None:
    """For the downstream loss this goes through the frozen backbone and the whole reverse chain or one prediction."""
    training = replace(diffuser_training, guidance=replace(diffuser_training.guidance, **guidance))
    task = in_float64(learning(training, episodes))
    flat = FlatParameters(task.model)
    gradient = task.local_gradients(flat, 0).gradients_GP[index]
    assert gradient.dtype == torch.float64
    assert_agrees_with_finite_differences(flat, gradient, lambda: task.local_gradients(flat, 0).scalars[loss])


class Spliced:
    """A denoiser whose predictions above a level are those of another, which stays as it is."""

    def __init__(self, early: Denoiser, late: Denoiser, first_late: int) -> None:
        self.early, self.late, self.first_late = early, late, first_late

    def condition(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.early.condition(*inputs), self.late.condition(*inputs)

    def guided(self, x_BX: Tensor, step_B: Tensor, conditions: tuple[Tensor, Tensor]) -> Tensor:
        if step_B[0] > self.first_late:
            return self.early.guided(x_BX, step_B, conditions[0])
        return self.late.guided(x_BX, step_B, conditions[1])


@pytest.mark.parametrize("path_steps", [1, 2])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-solver"])
def test_a_truncated_gradient_is_that_of_the_last_steps_with_the_others_held(
    diffuser_training: DiffuserTraining, episodes: Episodes, path_steps: int, sampler: str
) -> None:
    training = replace(
        diffuser_training,
        diffusion=DiffusionConfig(steps=5, sampling_steps=3, sampler=sampler),
        guidance=replace(diffuser_training.guidance, path_steps=path_steps),
    )
    task = in_float64(learning(training, episodes))
    flat = FlatParameters(task.model)
    gradient = task.local_gradients(flat, 0).gradients_GP[1]
    task.guidance = replace(task.guidance, path_steps=0)
    assert (gradient - task.local_gradients(flat, 0).gradients_GP[1]).norm() > 0.01 * gradient.norm()

    task.guidance = replace(task.guidance, path_steps=path_steps)
    first_late = task.diffuser.diffusion.steps[-path_steps]
    spliced: Any = Spliced(deepcopy(task.model), task.model, first_late)
    plan, noise_KBX = task.downstream_planner.at(0), task.diffuser.draw_batch_noise(8, *task.address, "dt-noise", 0)
    task.diffuser.denoiser = spliced

    def loss() -> Tensor:
        _, history = task.windows.windows(0, plan)
        prompts = task.diffuser.generate(
            task.pool.prompts_at(plan.prompt_episodes), task.pool.contexts_at(plan.context_episodes), noise_KBX
        )
        errors = squared_action_errors(task.backbone, history.trimmed(), prompts)
        return errors.sum() / (plan.steps(task.pool.index) * task.windows.action_dim)

    assert_agrees_with_finite_differences(flat, gradient, loss)


def test_a_chain_that_is_tracked_to_its_start_is_the_whole_chain(
    diffuser_training: DiffuserTraining, episodes: Episodes
) -> None:
    whole = learning(diffuser_training, episodes)
    tracked = learning(replace(diffuser_training, guidance=replace(diffuser_training.guidance, path_steps=3)), episodes)
    found, expected = (task.local_gradients(FlatParameters(task.model), 0).gradients_GP for task in (tracked, whole))
    assert torch.equal(found, expected)


def test_the_backbone_is_neither_given_a_gradient_nor_changed(
    diffuser_training: DiffuserTraining, episodes: Episodes
) -> None:
    task = learning(diffuser_training, episodes)
    before = {name: value.clone() for name, value in task.backbone.state_dict().items()}
    engine = Engine(task, diffuser_training.optimisation, identity_reduce)
    denoiser = engine.parameters.vector.clone()
    metrics = engine.advance()
    assert {"loss_dm", "loss_dt", "cosine"} <= metrics.keys()
    assert not torch.equal(engine.parameters.vector, denoiser)
    assert all(torch.equal(value, before[name]) for name, value in task.backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in task.backbone.parameters())
    assert not task.backbone.training


def test_guidance_reaches_every_part_of_the_denoiser(diffuser_training: DiffuserTraining, episodes: Episodes) -> None:
    task = learning(diffuser_training, episodes)
    flat = FlatParameters(task.model)
    for gradient in task.local_gradients(flat, 0).gradients_GP:
        for name, part in flat.views(gradient).items():
            assert part.abs().max() > 0, name


@pytest.mark.parametrize("batch_size", [1, 8])
def test_shares_of_two_workers_sum_to_that_of_one(
    diffuser_training: DiffuserTraining, episodes: Episodes, batch_size: int
) -> None:
    """With a batch of one, a worker has nothing to do and adds zero."""
    guidance = replace(diffuser_training.guidance, batch_size=batch_size)
    training = replace(diffuser_training, guidance=guidance, batch_size=batch_size)
    one, first, second = shares_of_one_and_of_two_workers(training, episodes)
    assert (one.gradients_GP.norm(dim=1) > 0).all()
    torch.testing.assert_close(first.gradients_GP + second.gradients_GP, one.gradients_GP)
    for name, value in one.scalars.items():
        torch.testing.assert_close(first.scalars[name] + second.scalars[name], value)


def test_guidance_acts_from_its_first_update_on(diffuser_training: DiffuserTraining, episodes: Episodes) -> None:
    task = learning(replace(diffuser_training, guidance_start=2), episodes)
    shares = [task.local_gradients(FlatParameters(task.model), step) for step in range(4)]
    assert [len(share.gradients_GP) for share in shares] == [1, 1, 2, 2]
    assert [sorted(share.scalars) for share in shares] == 2 * [["loss_dm"]] + 2 * [["loss_dm", "loss_dt"]]
    joined = task.combine(shares[0].gradients_GP, 0)
    assert torch.equal(joined.gradient, shares[0].gradients_GP[0])
    assert joined.metrics == {}


def test_without_guidance_weight_the_denoising_loss_trains_alone(
    diffuser_training: DiffuserTraining, episodes: Episodes
) -> None:
    unguided = replace(diffuser_training, guidance=replace(diffuser_training.guidance, weight=0))
    task, guided = learning(unguided, episodes), learning(diffuser_training, episodes)
    share = task.local_gradients(FlatParameters(task.model), 0)
    assert share.scalars.keys() == {"loss_dm"}
    # Guidance draws from addresses of its own, so the denoising gradient is the same with and without it.
    torch.testing.assert_close(
        share.gradients_GP[0], guided.local_gradients(FlatParameters(guided.model), 0).gradients_GP[0], rtol=0, atol=0
    )
