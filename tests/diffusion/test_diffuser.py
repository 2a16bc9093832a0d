"""From noise to prompts: what a diffuser's prompts and its denoising loss depend on.

Axes: B rows, K levels that generation visits, X features of a flattened prompt.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from promptdiffuser.data.windows import PromptPool
from promptdiffuser.diffusion.diffuser import Diffuser
from promptdiffuser.diffusion.predictions import PREDICTIONS
from promptdiffuser.diffusion.process import DiffusionConfig
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.models.denoiser import DenoiserConfig
from promptdiffuser.tasks import get_family
from promptdiffuser.training.model_folders import build_diffuser
from tests.rollout.synthetic_policies import tiny_pool

FAMILY = get_family("cheetah-vel")
TASKS = np.repeat([3, 8, 20], 4)
TINY = DenoiserConfig(hidden=16, depth=1, time_features=4, context_features=4, context_hidden=8)
PROCESS = DiffusionConfig(steps=3)


def make(
    denoiser: DenoiserConfig = TINY, process: DiffusionConfig = PROCESS, with_context: bool = True
) -> tuple[Diffuser, PromptPool]:
    """Return an untrained diffuser, and twelve prompts of three tasks with their contexts as it sees them."""
    pool, normaliser = tiny_pool(FAMILY, TASKS)
    space = PromptSpace.fit(normaliser, pool.prompts, FAMILY.horizon)
    diffuser = build_diffuser(denoiser, process, space, FAMILY, with_context, "test")
    return diffuser, diffuser.seen(pool)


def silence(diffuser: Diffuser) -> None:
    """Let the network predict zeros."""
    for parameter in diffuser.denoiser.network[-1].parameters():
        parameter.data.zero_()


def noise_of_a_level(diffuser: Diffuser) -> torch.Tensor:
    return torch.randn(len(TASKS), len(diffuser.space.low), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def states_of(diffuser: Diffuser, pool: PromptPool, noise_KBX: torch.Tensor) -> torch.Tensor:
    return diffuser.generate(pool.prompts, pool.transitions, noise_KBX).states


def test_a_prompt_does_not_depend_on_the_batch_it_is_generated_in() -> None:
    diffuser, pool = make()
    noise_KBX = diffuser.draw_noise(12, 0, "test")
    assert torch.equal(noise_KBX, diffuser.draw_noise(12, 0, "test"))
    together = diffuser.generate(pool.prompts, pool.transitions, noise_KBX)
    for row in range(12):
        only = slice(row, row + 1)
        alone = diffuser.generate(pool.prompts.select(only), pool.transitions[only], noise_KBX[:, only])
        torch.testing.assert_close(alone.states, together.states[only])
        torch.testing.assert_close(alone.actions, together.actions[only])


def test_a_reconstruction_of_prompts_without_noise_is_the_prompts() -> None:
    """A network that says there is no noise leaves x0 as it is, at every level and within the bounds."""
    diffuser, pool = make()
    silence(diffuser)
    no_noise_BX = torch.zeros_like(noise_of_a_level(diffuser))
    found = diffuser.reconstruct(pool.prompts, pool.transitions, torch.arange(12) % 3, no_noise_BX)
    torch.testing.assert_close(diffuser.space.encode(found), diffuser.space.encode(pool.prompts))
    assert torch.equal(found.timesteps, pool.prompts.timesteps)
    assert torch.equal(found.returns_to_go, pool.prompts.returns_to_go)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_denoising_loss_of_a_silent_network_is_the_target_it_misses(prediction: str) -> None:
    diffuser, pool = make(process=replace(PROCESS, prediction=prediction))
    silence(diffuser)
    noise_BX, step_B, shown_B = noise_of_a_level(diffuser), torch.arange(12) % 3, torch.arange(12) % 2 > 0
    losses_B = diffuser.denoising_loss(pool.prompts, pool.transitions, step_B, noise_BX, shown_B)
    missed_BX = diffuser.diffusion.target(PromptSpace.encode(pool.prompts), step_B, noise_BX)
    torch.testing.assert_close(losses_B, missed_BX.square().mean(dim=1))


def test_prompts_depend_on_the_goal_alone_where_y_is_left_out() -> None:
    diffuser, pool = make(replace(TINY, context="goal", sees_returns_and_times=False))
    states = states_of(diffuser, pool, diffuser.draw_noise(1, 0).expand(-1, 12, -1))
    equal = (states[:, None] - states[None]).abs().amax((2, 3)) < 1e-5
    assert torch.equal(equal, torch.from_numpy(TASKS[:, None] == TASKS))


def test_without_y_and_context_only_the_noise_tells_prompts_apart() -> None:
    diffuser, pool = make(replace(TINY, sees_returns_and_times=False), with_context=False)
    noise_KBX = diffuser.draw_noise(1, 0).expand(-1, 12, -1)
    prompts = diffuser.generate(pool.prompts, pool.transitions, noise_KBX)
    torch.testing.assert_close(prompts.states, prompts.states[:1].expand_as(prompts.states))
    assert torch.equal(prompts.returns_to_go, pool.prompts.returns_to_go)


def test_hidden_rows_are_predicted_without_their_condition() -> None:
    diffuser, pool = make()
    prompts, noise_BX = pool.prompts, noise_of_a_level(diffuser)
    others = replace(prompts, returns_to_go=prompts.returns_to_go + 1, timesteps=prompts.timesteps + 1)
    shown_B, step_B = torch.arange(12) % 2 > 0, torch.arange(12) % 3
    first_B, second_B = (
        diffuser.denoising_loss(seen, transitions, step_B, noise_BX, shown_B)
        for seen, transitions in ((prompts, pool.transitions), (others, pool.transitions + 1))
    )
    assert torch.equal(first_B[~shown_B], second_B[~shown_B])
    assert (first_B[shown_B] != second_B[shown_B]).all()


def test_generation_goes_beyond_the_conditional_prompt() -> None:
    """With one step of the chain a prompt is affine in the prediction, so guidance is an exact extrapolation."""
    one_step = replace(PROCESS, sampling_steps=1, sampler="ddim", clip=False)
    states = {}
    for weight in (0.0, 1.0, 3.0):
        diffuser, pool = make(replace(TINY, condition_dropout=0.2, condition_weight=weight), one_step)
        noise_KBX = diffuser.draw_noise(12, 0)
        states[weight] = states_of(diffuser, pool, noise_KBX)
    assert noise_KBX.shape == (1, 12, len(diffuser.space.low))
    expected = states[0.0] + 3 * (states[1.0] - states[0.0])
    torch.testing.assert_close(states[3.0], expected, atol=1e-4, rtol=1e-4)
    assert (states[3.0] - states[1.0]).abs().max() > 1e-2
