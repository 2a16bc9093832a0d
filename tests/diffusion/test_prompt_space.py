"""Prompts to diffusion vectors and back, and the condition they are generated from."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.windows import PromptPool, cut_pool_pieces
from promptdiffuser.diffusion.prompt_space import PromptSpace

NUM_EPISODES, HORIZON, STATE_DIM, ACTION_DIM, PROMPT_LENGTH = 12, 9, 4, 2, 3


@pytest.fixture(scope="module")
def normaliser_and_pool() -> tuple[Normaliser, PromptPool]:
    """Return the statistics and the prompts of random episodes of different lengths."""
    rng = np.random.default_rng(0)
    episodes = Episodes(
        tasks=np.repeat(np.arange(3), NUM_EPISODES // 3),
        seeds=np.arange(NUM_EPISODES),
        lengths=rng.integers(PROMPT_LENGTH + 1, HORIZON + 1, NUM_EPISODES),
        successes=np.zeros(NUM_EPISODES, bool),
        observations=rng.normal(3, 2, (NUM_EPISODES, HORIZON, STATE_DIM)).astype(np.float32),
        actions=rng.uniform(-1, 1, (NUM_EPISODES, HORIZON, ACTION_DIM)).astype(np.float32),
        rewards=rng.normal(-2, 1, (NUM_EPISODES, HORIZON)).astype(np.float32),
    )
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
