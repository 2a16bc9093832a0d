"""The two losses of a Prompt Diffuser and their gradients."""

from dataclasses import replace

import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.learning.diffuser import DiffuserLearning
from promptdiffuser.learning.engine import Engine, FlatParameters, alone
from promptdiffuser.learning.trainings import DiffuserTraining, make_resident
from tests.learning.workers import shares_of_one_and_of_two_workers

CPU = torch.device("cpu")
STEP = 1e-3
"""Of finite differences: wide for float32's rounding of the loss, narrow for the kinks that ReLU and clipping make."""


def learning(training: DiffuserTraining, episodes: Episodes) -> DiffuserLearning:
    return training.learning_task(*make_resident(training, episodes, CPU), CPU)


@pytest.mark.parametrize(("loss", "index"), [("loss_dm", 0), ("loss_dt", 1)])
def test_gradients_agree_with_finite_differences(
    diffuser_training: DiffuserTraining, episodes: Episodes, loss: str, index: int
) -> None:
    """For the downstream loss this goes through the frozen backbone and the whole reverse chain."""
    task = learning(diffuser_training, episodes)
    flat = FlatParameters(task.model)
    gradient, start = task.share(flat, 0).gradients_GP[index], flat.vector.clone()
    generator = torch.Generator().manual_seed(0)
    for direction in (gradient, *(torch.randn(start.shape, generator=generator) for _ in range(3))):
        unit = direction / direction.norm()
        losses = []
        for offset in (STEP, -STEP):
            flat.vector.copy_(start + offset * unit)
            losses.append(task.share(flat, 0).scalars[loss].item())
        slope = (losses[0] - losses[1]) / (2 * STEP)
        assert slope == pytest.approx(float(gradient.dot(unit)), rel=0, abs=0.02 * float(gradient.norm()))


def test_the_backbone_is_neither_given_a_gradient_nor_changed(
    diffuser_training: DiffuserTraining, episodes: Episodes
) -> None:
    task = learning(diffuser_training, episodes)
    before = {name: value.clone() for name, value in task.backbone.state_dict().items()}
    engine = Engine(task, diffuser_training.optimisation, alone)
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
    for gradient in task.share(flat, 0).gradients_GP:
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
    shares = [task.share(FlatParameters(task.model), step) for step in range(4)]
    assert [len(share.gradients_GP) for share in shares] == [1, 1, 2, 2]
    assert [sorted(share.scalars) for share in shares] == 2 * [["loss_dm"]] + 2 * [["loss_dm", "loss_dt"]]
    joined = task.join(shares[0].gradients_GP, 0)
    assert torch.equal(joined.gradient, shares[0].gradients_GP[0])
    assert joined.metrics == {}


def test_without_guidance_weight_the_denoising_loss_trains_alone(
    diffuser_training: DiffuserTraining, episodes: Episodes
) -> None:
    unguided = replace(diffuser_training, guidance=replace(diffuser_training.guidance, weight=0))
    task, guided = learning(unguided, episodes), learning(diffuser_training, episodes)
    share = task.share(FlatParameters(task.model), 0)
    assert share.scalars.keys() == {"loss_dm"}
    # Guidance draws from addresses of its own, so the denoising gradient is the same with and without it.
    torch.testing.assert_close(
        share.gradients_GP[0], guided.share(FlatParameters(guided.model), 0).gradients_GP[0], rtol=0, atol=0
    )


def test_denoising_loss_of_a_silent_network_is_the_noise_it_misses(
    diffuser_training: DiffuserTraining, episodes: Episodes
) -> None:
    task = learning(diffuser_training, episodes)
    for parameter in task.model.network[-1].parameters():
        parameter.data.zero_()
    noise_BX = torch.randn(12, 2 * 27, generator=torch.Generator().manual_seed(0))
    shown_B = torch.arange(12) % 2 > 0
    losses_B = task.diffuser.denoising_loss(
        task.pool.prompts, task.pool.transitions, torch.arange(12) % 3, noise_BX, shown_B
    )
    torch.testing.assert_close(losses_B, noise_BX.square().mean(dim=1))


def test_a_prompt_does_not_depend_on_the_batch_it_is_generated_in(
    diffuser_training: DiffuserTraining, episodes: Episodes
) -> None:
    task = learning(diffuser_training, episodes)
    noise_NBX = task.diffuser.draw_noise(12, 0, "test")
    assert torch.equal(noise_NBX, task.diffuser.draw_noise(12, 0, "test"))
    together = task.diffuser.generate(task.pool.prompts, task.pool.transitions, noise_NBX)
    for row in range(12):
        only = slice(row, row + 1)
        alone_ = task.diffuser.generate(task.pool.prompts.select(only), task.pool.transitions[only], noise_NBX[:, only])
        torch.testing.assert_close(alone_.states, together.states[only])
        torch.testing.assert_close(alone_.actions, together.actions[only])
