"""Deciding one step at a time with cached keys and values.

With banded attention a token's keys and values depend on no later token and are seen for a fixed number of tokens, so
this is exact: the actions are those of the whole episode in one forward pass. With full attention over a sliding window
it would not be, because cached keys carry information of tokens that have left the window.

Axes: B rows, Q new tokens, L tokens that are seen, P prompt tokens, D width.
"""

import torch
from torch import Tensor

from promptdiffuser.data.windows import Segments
from promptdiffuser.models.attention import Attention, band_visible, causal_attention, masked_attention
from promptdiffuser.models.backbone import PromptDT


class StepDecoder:
    """Plays episodes in lockstep with a backbone that has banded attention."""

    def __init__(self, backbone: PromptDT, prompt: Segments) -> None:
        """Begin one episode a prompt; the prompt's keys and values are computed here, once."""
        if backbone.config.attention != "banded":
            raise ValueError("only a backbone with banded attention can decide one step at a time")
        self._backbone, self._band = backbone, 3 * backbone.config.history
        self._keys_and_values: list[tuple[Tensor, Tensor]] = []
        """Of every layer: the prompt's, then those of the history tokens that the next tokens see."""
        self._num_tokens = 0
        tokens_BPD = backbone.prompt_tokens(prompt)
        self._num_prompt = tokens_BPD.shape[1]
        causal = causal_attention(self._num_prompt, slice(None), tokens_BPD.device)

        def remembering(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self._keys_and_values.append((key, value))
            return causal(query, key, value)

        hidden_BPD = backbone.embedding_norm(tokens_BPD)
        for block in backbone.blocks:
            hidden_BPD = block(hidden_BPD, slice(None), remembering)

    def action(self, steps: Segments) -> Tensor:
        """Return the action (B, A) for the last of some steps (B, 1 or 2).

        The first decision is given its one step, every later one the step before, whose action is known by now, and its
        own; of that its action is not read.
        """
        is_first = self._num_tokens == 0
        # Of the step before, only the action is new; of the step being decided, the return-to-go and the state.
        tokens_BQD = self._backbone.embed_history(steps)[:, 0 if is_first else 2 : -1]
        hidden_BQD = self._backbone.embedding_norm(tokens_BQD)
        for layer, block in enumerate(self._backbone.blocks):
            hidden_BQD = block(hidden_BQD, slice(None), self._attention(layer))
        self._num_tokens = min(self._num_tokens + tokens_BQD.shape[1], self._band - 1)
        return self._backbone.read_actions(hidden_BQD[:, -1:])[:, 0]

    def _attention(self, layer: int) -> Attention:
        num_prompt, num_before, band = self._num_prompt, self._num_tokens, self._band

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            known_key, known_value = self._keys_and_values[layer]
            key, value = torch.cat([known_key, key], dim=2), torch.cat([known_value, value], dim=2)
            positions_L = torch.arange(key.shape[2] - num_prompt, device=key.device)
            visible_QL = band_visible(positions_L[num_before:], positions_L, band)
            visible_QL = torch.cat([visible_QL.new_ones(len(visible_QL), num_prompt), visible_QL], dim=1)
            # The next tokens reach one token less far back than there is room for, as they see themselves.
            first_kept = max(num_prompt, key.shape[2] - (band - 1))
            kept_key, kept_value = (
                torch.cat([x[:, :, :num_prompt], x[:, :, first_kept:]], dim=2) for x in (key, value)
            )
            self._keys_and_values[layer] = kept_key, kept_value
            return masked_attention(query, key, value, visible_QL)

        return attend
