"""Which tokens see which: causal attention over a window, banded attention over a whole episode.

Axes: B rows, H heads, E features of a head, L tokens that are seen, Q tokens that ask, P prompt tokens, N blocks of a
banded history, M tokens of a block.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query (B, H, Q, E), key (B, H, L, E), value (B, H, L, E)) -> (B, H, Q, E)."""


def masked_attention(query: Tensor, key: Tensor, value: Tensor, visible_QL: Tensor) -> Tensor:
    """Scaled dot-product attention (..., Q, E) over the keys that are visible."""
    if key.device.type == "cpu":
        # At 75 tokens torch's fused kernel for CPUs takes four times as long, forward and backward in bf16.
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        mixed: Tensor = scores.masked_fill(~visible_QL, -torch.inf).softmax(-1) @ value
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible_QL)
    return mixed


def causal_attention(num_tokens: int, keep: slice, device: torch.device) -> Attention:
    """Return the attention of the tokens at positions `keep` to all tokens up to each of them."""
    positions_L = torch.arange(num_tokens, device=device)
    visible_QL = positions_L <= positions_L[keep, None]
    return lambda query, key, value: masked_attention(query, key, value, visible_QL)


def band_visible(query_positions_Q: Tensor, key_positions_L: Tensor, band: int) -> Tensor:
    """Return (Q, L): whether a key is among the last `band` history tokens up to and with the query's own."""
    behind_QL = query_positions_Q[:, None] - key_positions_L
    return (behind_QL >= 0) & (behind_QL < band)


BANDS_A_BLOCK = 4
"""Of 2 to 6 all are within a tenth of each other in speed; one copies every key twice for its neighbours' queries."""


def banded_attention(num_prompt: int, band: int, asking: slice, device: torch.device) -> Attention:
    """Return the attention of history tokens to the prompt and to the last `band` history tokens.

    The history is cut into blocks of some bands, so that the keys of a query lie in its own block and the band before
    it: the work grows with the history's length, not with its square.

    Args:
        num_prompt: Tokens of the prompt, which stand before the history.
        band: Tokens of a band, a whole number of steps.
        asking: Which positions of every block ask: `slice(None)` for all, and then the prompt's tokens ask too, among
            themselves and causally; or some token of every step, as `slice(1, None, 3)` for the states.
        device: Where the tokens are.
    """
    size = BANDS_A_BLOCK * band
    own_M = torch.arange(size, device=device)
    asking_Q = own_M[asking]
    everything_asks = len(asking_Q) == size
    in_reach_L = torch.cat([torch.arange(-band, 0, device=device), own_M])
    prompt_QP = torch.ones(len(asking_Q), num_prompt, dtype=torch.bool, device=device)
    visible_QL = torch.cat([prompt_QP, band_visible(asking_Q, in_reach_L, band)], dim=1)
    # Before the first block there is nothing.
    first_QL = torch.cat([prompt_QP, band_visible(asking_Q, in_reach_L, band) & (in_reach_L >= 0)], dim=1)
    among_prompt = causal_attention(num_prompt, slice(None), device)

    def in_blocks(x_BHLE: Tensor, size: int) -> Tensor:
        blocks: Tensor = F.pad(x_BHLE, (0, 0, 0, -x_BHLE.shape[2] % size)).unflatten(2, (-1, size))
        return blocks

    def reached(x_BHLE: Tensor) -> Tensor:
        own = in_blocks(x_BHLE[:, :, num_prompt:], size)
        before = F.pad(own[:, :, :-1, -band:], (0, 0, 0, 0, 1, 0))
        prompt = x_BHLE[:, :, None, :num_prompt].expand(-1, -1, own.shape[2], -1, -1)
        return torch.cat([prompt, before, own], dim=3)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        asking = in_blocks(query[:, :, num_prompt if everything_asks else 0 :], len(asking_Q))
        visible_NQL = torch.stack([first_QL, *[visible_QL] * (asking.shape[2] - 1)])
        mixed: Tensor = masked_attention(asking, reached(key), reached(value), visible_NQL).flatten(2, 3)
        if everything_asks:
            of_prompt = among_prompt(*(x[:, :, :num_prompt] for x in (query, key, value)))
            mixed = torch.cat([of_prompt, mixed], dim=2)
        without_padding: Tensor = mixed[:, :, : query.shape[2]]
        return without_padding

    return attend
