"""Prompts to diffusion vectors and back, and the condition they are generated from."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.windows import PromptPool, cut_pool_pieces
from promptdiffuser.diffusion.process import Diffusion, DiffusionConfig
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.errors import UserError
from promptdiffuser.models.denoiser import ARCHITECTURES, Denoiser, DenoiserConfig

NUM_EPISODES, HORIZON, STATE_DIM, ACTION_DIM, PROMPT_LENGTH = 12, 9, 4, 2, 3


def random_episodes(shortest: int, horizon: int) -> Episodes:
    rng = np.random.default_rng(0)
    return Episodes(
        tasks=np.repeat(np.arange(3), NUM_EPISODES // 3),
        seeds=np.arange(NUM_EPISODES),
        lengths=rng.integers(shortest, horizon + 1, NUM_EPISODES),
        successes=np.zeros(NUM_EPISODES, bool),
        observations=rng.normal(3, 2, (NUM_EPISODES, horizon, STATE_DIM)).astype(np.float32),
        actions=rng.uniform(-1, 1, (NUM_EPISODES, horizon, ACTION_DIM)).astype(np.float32),
        rewards=rng.normal(-2, 1, (NUM_EPISODES, horizon)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def normaliser_and_pool() -> tuple[Normaliser, PromptPool]:
    """Return the statistics and the prompts of random episodes of different lengths."""
    episodes = random_episodes(PROMPT_LENGTH + 1, HORIZON)
    normaliser = Normaliser.fit([episodes], return_scale=500.0)
    pieces = cut_pool_pieces(episodes, PROMPT_LENGTH, 4)
    return normaliser, PromptPool.build(pieces, normaliser, torch.device("cpu"))


def test_decoding_an_encoded_prompt_returns_it(normaliser_and_pool: tuple[Normaliser, PromptPool]) -> None:
    normaliser, pool = normaliser_and_pool
    space = PromptSpace.fit(normaliser, pool.prompts, HORIZON)
    x0_BX = PromptSpace.encode(pool.prompts)
    assert x0_BX.shape == (NUM_EPISODES, PROMPT_LENGTH * (STATE_DIM + ACTION_DIM + 1))
    decoded = space.decode(x0_BX, pool.prompts)
    for field in fields(decoded):
        assert torch.equal(getattr(decoded, field.name), getattr(pool.prompts, field.name)), field.name


def test_decoded_prompt_takes_its_returns_and_timesteps_from_the_condition(
    normaliser_and_pool: tuple[Normaliser, PromptPool],
) -> None:
    normaliser, pool = normaliser_and_pool
    space = PromptSpace.fit(normaliser, pool.prompts, HORIZON)
    others = pool.prompts.select(torch.arange(NUM_EPISODES).flip(0))
    decoded = space.decode(PromptSpace.encode(pool.prompts), others)
    assert torch.equal(decoded.returns_to_go, others.returns_to_go)
    assert torch.equal(decoded.timesteps, others.timesteps)
    assert torch.equal(decoded.states, pool.prompts.states)


def test_training_prompts_lie_within_the_bounds(normaliser_and_pool: tuple[Normaliser, PromptPool]) -> None:
    """Clipping to the bounds must leave real data alone, so bounds and vectors must order features alike."""
    normaliser, pool = normaliser_and_pool
    space, x0_BX = PromptSpace.fit(normaliser, pool.prompts, HORIZON), PromptSpace.encode(pool.prompts)
    assert ((x0_BX >= space.low - 1e-5) & (x0_BX <= space.high + 1e-5)).all()
    is_action = torch.tensor([False] * STATE_DIM + [True] * ACTION_DIM + [False]).repeat(PROMPT_LENGTH)
    assert torch.equal(space.low == -1, is_action)
    assert torch.equal(space.high == 1, is_action)


def test_condition_of_the_training_prompts_is_standardised(normaliser_and_pool: tuple[Normaliser, PromptPool]) -> None:
    normaliser, pool = normaliser_and_pool
    y_BY = PromptSpace.fit(normaliser, pool.prompts, HORIZON).condition(pool.prompts)
    returns_BP, times_BP = y_BY.split(PROMPT_LENGTH, dim=1)
    torch.testing.assert_close(returns_BP.mean(0), torch.zeros(PROMPT_LENGTH), atol=1e-4, rtol=0)
    torch.testing.assert_close(returns_BP.std(0, correction=0), torch.ones(PROMPT_LENGTH), atol=1e-4, rtol=0)
    assert torch.equal(times_BP, pool.prompts.timesteps / HORIZON)


def test_equal_returns_give_a_finite_condition(normaliser_and_pool: tuple[Normaliser, PromptPool]) -> None:
    """One few-shot episode, or a family with a constant reward, has no spread to divide by."""
    normaliser, pool = normaliser_and_pool
    only = pool.prompts.select(slice(0, 1))
    assert PromptSpace.fit(normaliser, only, HORIZON).condition(only)[0, :PROMPT_LENGTH].abs().max() == 0


def test_space_lives_where_its_normaliser_and_prompts_do(normaliser_and_pool: tuple[Normaliser, PromptPool]) -> None:
    """The device `meta` stands for an accelerator: mixing it with CPU tensors fails in the same places."""
    normaliser, pool = normaliser_and_pool
    there = Normaliser(**{name: tensor.to("meta") for name, tensor in normaliser.tensors().items()})
    space = PromptSpace.fit(there, pool.prompts.to(torch.device("meta")), HORIZON)
    assert {t.device.type for t in (space.low, space.high, space.return_mean, space.return_std)} == {"meta"}


@pytest.mark.parametrize("length", [1, 2, 5, 11, 21, 40])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prompts_of_every_published_length_are_generated(architecture: str, length: int) -> None:
    episodes = random_episodes(41, 50)
    normaliser = Normaliser.fit([episodes], return_scale=500.0)
    pool = PromptPool.build(cut_pool_pieces(episodes, length, 4), normaliser, torch.device("cpu"))
    space = PromptSpace.fit(normaliser, pool.prompts, 50)
    assert space.prompt_shape == (length, STATE_DIM + ACTION_DIM + 1)
    denoiser = Denoiser(
        DenoiserConfig(architecture, hidden=16, depth=1), space.prompt_shape, space.condition_features, 0
    )
    condition_BC = denoiser.condition(space.condition(pool.prompts), pool.transitions)
    process = Diffusion(DiffusionConfig(), space.low, space.high)
    with torch.no_grad():
        x0_BX = process.sample(
            lambda x, step: denoiser.guided(x, step, condition_BC), torch.randn(5, NUM_EPISODES, len(space.low))
        )
    prompts = space.decode(x0_BX, pool.prompts)
    assert prompts.states.shape == (NUM_EPISODES, length, STATE_DIM)
    assert (prompts.actions.abs() <= 1 + 1e-6).all()
    assert torch.equal(space.encode(prompts), x0_BX)


def test_a_prompt_longer_than_an_episode_is_refused_by_name() -> None:
    episodes = random_episodes(7, 9)
    with pytest.raises(UserError, match=r"has 7 steps, a prompt of 7 needs 8; lower --backbone\.prompt-length"):
        cut_pool_pieces(episodes, 7, 4)
    assert cut_pool_pieces(episodes, 6, 4)["prompt_timesteps"].min() == 0
