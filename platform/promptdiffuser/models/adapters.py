"""Small trainable parts in the blocks of a frozen backbone: bottleneck adapters and low-rank changes of weights.

Axes: B rows, L tokens, D width.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from promptdiffuser.models.backbone import PromptDT, blocks_of


class AdaptedLinear(nn.Linear):
    """A linear layer with a bottleneck adapter after it (Houlsby et al. 2019): y + up(relu(down(y))).

    It keeps the names of the layer's own weights, and begins as the layer alone, because `up` begins as zeros.
    """

    def __init__(self, layer: nn.Linear, bottleneck: int, generator: torch.Generator) -> None:
        """Take over a layer's weights."""
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        width = layer.out_features
        self.down = nn.utils.skip_init(nn.Linear, width, bottleneck)
        self.up = nn.utils.skip_init(nn.Linear, bottleneck, width)
        nn.init.normal_(self.down.weight, std=width**-0.5, generator=generator)
        for zeros in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zeros)
        self.to(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., D)."""
        y = super().forward(x)
        adapted: Tensor = y + self.up(F.relu(self.down(y)))
        return adapted


def add_adapters(backbone: PromptDT, bottleneck: int, generator: torch.Generator) -> PromptDT:
    """Put adapters after the attention and after the MLP of every block, in place; they alone are trainable then.

    They have 2 L (2 D b + b + D) parameters for L blocks and a bottleneck of b.
    """
    backbone.requires_grad_(requires_grad=False)
    for block in blocks_of(backbone):
        block.attention_out = AdaptedLinear(block.attention_out, bottleneck, generator)
        block.mlp_out = AdaptedLinear(block.mlp_out, bottleneck, generator)
    return backbone


def bottleneck_in(weights: Mapping[str, Tensor]) -> int:
    """Return the bottleneck of the adapters among some weights."""
    return next(tensor.shape[0] for name, tensor in weights.items() if name.endswith(".down.weight"))


class LowRank(nn.Module):
    """A change of a weight by a product of two thin matrices (Hu et al. 2022): W + (alpha / rank) out @ in.

    `out` begins as zeros, so the weight begins unchanged.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator) -> None:
        """Make the change of a weight of shape (out, in)."""
        super().__init__()
        num_out, num_in = weight.shape
        drawn = torch.randn(rank, num_in, generator=generator) * num_in**-0.5
        self.thin_in = nn.Parameter(drawn.to(weight))
        self.thin_out = nn.Parameter(weight.new_zeros(num_out, rank))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        """Return the changed weight."""
        return weight + self.scale * self.thin_out @ self.thin_in


def add_low_rank(backbone: PromptDT, rank: int, alpha: float, generator: torch.Generator) -> PromptDT:
    """Make all four weight matrices of every block changeable by low rank, in place; nothing else is trainable then.

    They have 16 L r D parameters for L blocks: r (in + out) for shapes (3 D, D), (D, D), (4 D, D) and (D, 4 D).
    """
    backbone.requires_grad_(requires_grad=False)
    for layer in _changed_layers(backbone):
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha, generator))
    return backbone


def merge_low_rank(backbone: PromptDT) -> PromptDT:
    """Make the changed weights plain weights again, in place."""
    for layer in _changed_layers(backbone):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return backbone


def _changed_layers(backbone: PromptDT) -> Iterable[nn.Linear]:
    for block in blocks_of(backbone):
        yield from (block.attention_in, block.attention_out, block.mlp_in, block.mlp_out)
