"""Banded attention: against masks written out over all tokens."""

import pytest
import torch

from promptdiffuser.models.attention import banded_attention, causal_attention
from promptdiffuser.models.backbone import BackboneConfig, PromptDT
from tests.models.segments import ACTION_DIM, STATE_DIM, segments

HORIZON, HISTORY = 30, 4
CPU = torch.device("cpu")


def network(layers: int = 2, sees_prompt: bool = True, history: int = HISTORY) -> PromptDT:
    """Return a float64 backbone whose weights are large enough that every input moves the actions."""
    generator = torch.Generator().manual_seed(0)
    config = BackboneConfig(
        16, layers, heads=2, history=history, prompt_length=3, attention="banded", sees_prompt=sees_prompt, dropout=0.0
    )
    model = PromptDT(config, STATE_DIM, ACTION_DIM, HORIZON).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return model


@pytest.mark.parametrize("num_history", [1, 2, 6, 7, 12, 20])
@pytest.mark.parametrize("num_prompt", [0, 5])
@pytest.mark.parametrize("asking", [slice(None), slice(1, None, 3)])
def test_blocks_attend_as_one_mask_over_all_tokens_says(num_history: int, num_prompt: int, asking: slice) -> None:
    band, generator = 6, torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, 2, 2, num_prompt + num_history, 8, generator=generator, dtype=torch.float64)
    visible = torch.zeros(num_prompt + num_history, num_prompt + num_history, dtype=torch.bool)
    for row in range(len(visible)):
        for column in range(row + 1):
            visible[row, column] = column < num_prompt or row - column < band
    expected = (query @ key.mT / 8**0.5).masked_fill(~visible, -torch.inf).softmax(-1) @ value
    positions = torch.arange(num_history)[asking] + num_prompt
    if asking == slice(None):
        positions = torch.arange(num_prompt + num_history)
    mixed = banded_attention(num_prompt, band, asking, CPU)(query[:, :, positions], key, value)
    torch.testing.assert_close(mixed, expected[:, :, positions])


def test_a_band_as_long_as_the_history_is_causal_attention() -> None:
    query, key, value = torch.randn(3, 2, 2, 15, 8, generator=torch.Generator().manual_seed(1))
    banded = banded_attention(3, 12, slice(None), CPU)(query, key, value)
    torch.testing.assert_close(banded, causal_attention(15, slice(None), CPU)(query, key, value))


def test_an_action_sees_one_band_a_layer_and_the_prompt_from_everywhere() -> None:
    model, episode, prompt = network(layers=2), segments(2, HORIZON, 0), segments(2, 3, 1)
    before = model(episode, prompt)
    changed = segments(2, HORIZON, 0)
    changed.states[:, 0] += 1
    reached = ((model(changed, prompt) - before).abs().amax(-1) > 1e-9).all(dim=0)
    # Two layers carry the first state over two bands: each reaches `history` - 1 whole steps back, and a bit.
    assert reached[: 2 * (HISTORY - 1) + 1].all()
    assert not reached[2 * HISTORY :].any()
    prompt.states[:, 0] += 1
    assert ((model(episode, prompt) - before).abs().amax(-1) > 1e-9).all()


def test_a_banded_action_does_not_see_later_steps() -> None:
    model, episode, prompt = network(), segments(2, HORIZON, 0), segments(2, 3, 1)
    later = segments(2, HORIZON, 0)
    later.states[:, 17:] += 1
    later.actions[:, 17:] *= -1
    moved = (model(later, prompt) - model(episode, prompt)).abs().amax(-1)
    assert (moved[:, :17] == 0).all()
    assert (moved[:, 17:] > 0).all()
