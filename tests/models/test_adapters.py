"""Adapters and low-rank changes: how many numbers, where they begin, and that every way of computing has them."""

import copy

import pytest
import torch
from torch import nn

from promptdiffuser.models.adapters import AdaptedLinear, add_adapters, add_low_rank, bottleneck_in, merge_low_rank
from promptdiffuser.models.backbone import BackboneConfig, PromptDT
from promptdiffuser.models.decoding import make_decoder
from tests.models.segments import segments
from tests.models.test_decoding import HORIZON, ROWS, Player, network

HISTORY, PROMPT = segments(ROWS, 4, 1), segments(ROWS, 3, 2)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(("width", "layers", "heads"), [(128, 3, 1), (512, 4, 8)])
def test_counts_are_those_of_the_formulas(width: int, layers: int, heads: int) -> None:
    config = BackboneConfig(width=width, layers=layers, heads=heads)
    with torch.device("meta"):
        plain = PromptDT(config, 39, 4, HORIZON)
    for bottleneck in (16, 64):
        with torch.device("meta"):
            adapted = add_adapters(copy.deepcopy(plain), bottleneck, None)
        assert trainable(adapted) == 2 * layers * (2 * width * bottleneck + bottleneck + width)
    for rank in (4, 8):
        with torch.device("meta"):
            changed = add_low_rank(copy.deepcopy(plain), rank, 1.0, None)
        assert trainable(changed) == 16 * layers * rank * width


def test_both_begin_as_the_frozen_backbone() -> None:
    plain = network()
    for begun in (
        add_adapters(copy.deepcopy(plain), 3, generator()),
        add_low_rank(copy.deepcopy(plain), 2, 4.0, generator()),
    ):
        assert torch.equal(begun(HISTORY, PROMPT), plain(HISTORY, PROMPT))


def test_adapters_keep_the_names_of_the_weights_and_are_told_by_theirs() -> None:
    plain = network()
    adapted = add_adapters(copy.deepcopy(plain), 3, generator())
    weights = adapted.state_dict()
    assert weights.keys() > plain.state_dict().keys()
    assert bottleneck_in(weights) == 3


def moved(adapted: PromptDT) -> PromptDT:
    """Return adapters that change what the backbone does."""
    for module in adapted.modules():
        if isinstance(module, AdaptedLinear):
            nn.init.normal_(module.up.weight, generator=generator())
    return adapted.requires_grad_(requires_grad=False)


def test_an_adapter_is_a_bottleneck_behind_the_layer() -> None:
    layer = nn.Linear(6, 4)
    adapted = AdaptedLinear(layer, 2, generator())
    nn.init.normal_(adapted.up.weight, generator=generator())
    x = torch.randn(5, 6)
    y = layer(x)
    hidden = (y @ adapted.down.weight.T + adapted.down.bias).clamp(min=0)
    torch.testing.assert_close(adapted(x), y + hidden @ adapted.up.weight.T + adapted.up.bias)


@pytest.mark.parametrize("attention", ["full", "banded"])
@pytest.mark.parametrize("heads", [1, 2])
def test_adapted_backbones_decide_step_by_step_as_they_do_at_once(attention: str, heads: int) -> None:
    plain = network(attention=attention, heads=heads)
    model = moved(add_adapters(copy.deepcopy(plain), 3, generator()))
    assert not torch.allclose(model(HISTORY, PROMPT), plain(HISTORY, PROMPT))
    player = Player(model, make_decoder(model, ROWS, torch.float64))
    player.start([0, 1, 2])
    for _ in range(HORIZON // 2):
        player.step()


def test_merged_changes_are_plain_weights_that_do_the_same() -> None:
    plain = network()
    changed = add_low_rank(copy.deepcopy(plain), 2, 4.0, generator())
    for parameter in changed.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator(), dtype=torch.float64)
    acting = changed(HISTORY, PROMPT)
    assert not torch.allclose(acting, plain(HISTORY, PROMPT))
    merged = merge_low_rank(changed)
    assert torch.equal(merged(HISTORY, PROMPT), acting)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    difference = merged.blocks[0].mlp_in.weight - plain.blocks[0].mlp_in.weight
    assert torch.linalg.matrix_rank(difference, atol=1e-9) == 2
