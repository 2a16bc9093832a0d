"""Prompt-DT, the backbone: a causal transformer over (return-to-go, state, action) tokens with a prompt before them.

Axes: B rows, K history steps, S state, A action, D width, L tokens, Q tokens that are kept.

The model is the public Prompt-DT (mxu34/prompt-dt at 5f665e5, prompt_dt/prompt_decision_transformer.py: GPT-2 blocks
without positional embedding, ReLU, separate embeddings for prompt and history, learned timestep embeddings, tanh action
head read at the state tokens), with these departures, each a trap of the original:

- one LayerNorm for prompt and history tokens alike; the original normalises the history only;
- padding stands on the right and causal attention hides it; the original pads on the left with actions of -10 in
  training and of 0 in evaluation, and masks with an additive -1e4;
- the prompt is an argument of its own with one prompt a row; the original guesses from shapes whether it was given one
  prompt or many, and drops the last return-to-go when the prompt length is 1, 11 or 21;
- only the action head exists; the original carries unused state and return heads;
- the timestep table has as many rows as the horizon; the original has 1,000 whatever the environment.

The baselines without a prompt or without returns are this network told not to see them: MT-ORL (no prompt), MT-BC
(neither), Prompt-MT-BC (no returns); pdt_main.py's `--no-prompt` and `--no-rtg`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptdiffuser.data.windows import Segments
from promptdiffuser.models.attention import Attention, banded_attention, causal_attention

Prompt = Segments | Tensor
"""Trajectory prompts (B, K*), or tokens (B, P, D) that stand in the place of embedded ones, as soft prompts do."""


@dataclass(frozen=True)
class BackboneConfig:
    """Size of the Prompt-DT. `width`, `layers` and `heads` of the public model are 128, 3 and 1."""

    width: int = 128
    """Features of a token."""
    layers: int = 3
    """Transformer blocks."""
    heads: int = 1
    """Attention heads; must divide the width."""
    history: int = 20
    """Steps of the episode's own past that the policy sees (K); with banded attention, that each layer sees."""
    prompt_length: int = 5
    """Steps in a trajectory prompt (K*)."""
    attention: Literal["full", "banded"] = "full"
    """full: windows of `history` steps, every token sees all tokens up to its own. banded: whole episodes, every token
    sees the prompt and the tokens of the last `history` steps in every layer; a token's keys and values then never
    change, so inference one step at a time with a cache is exact."""
    sees_prompt: bool = True
    """Whether the prompt's tokens stand before the history; off for MT-ORL and MT-BC."""
    sees_returns: bool = True
    """Whether returns-to-go are seen; off for MT-BC and Prompt-MT-BC, which see zeros in their place."""
    dropout: float = 0.1
    """Dropout on embeddings, attention output and MLP output, in training only. Each worker draws the masks of its
    rows, so a training with dropout has other masks with another number of workers."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        for name in ("width", "layers", "heads", "history", "prompt_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"backbone.{name} must be at least 1, got {getattr(self, name)}")
        if self.attention not in ("full", "banded"):
            raise ValueError(f"backbone.attention must be full or banded, got {self.attention!r}")
        if self.width % self.heads:
            raise ValueError(f"backbone.heads must divide backbone.width: {self.width} is no multiple of {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"backbone.dropout must be in [0, 1), got {self.dropout}")

    @property
    def window_steps(self) -> int | None:
        """Steps of the longest history windows that it takes; None is whole episodes."""
        return None if self.attention == "banded" else self.history


class StepEmbedding(nn.Module):
    """Embeds steps as three tokens each, in the order return-to-go, state, action."""

    def __init__(self, state_dim: int, action_dim: int, config: BackboneConfig, horizon: int) -> None:
        super().__init__()
        self.sees_returns = config.sees_returns
        self.return_to_go = nn.Linear(1, config.width)
        self.state = nn.Linear(state_dim, config.width)
        self.action = nn.Linear(action_dim, config.width)
        self.timestep = nn.Embedding(horizon, config.width)

    def forward(self, steps: Segments) -> Tensor:
        """Return tokens (B, 3 K, D)."""
        returns_BK = steps.returns_to_go if self.sees_returns else torch.zeros_like(steps.returns_to_go)
        tokens_BK3D = torch.stack(
            [self.return_to_go(returns_BK[..., None]), self.state(steps.states), self.action(steps.actions)], dim=2
        )
        # In the number format of the products, as all that comes after, or every sum and norm moves twice the bytes.
        time_BK1D = self.timestep(steps.timesteps)[:, :, None].to(tokens_BK3D.dtype)
        timed_BLD: Tensor = (tokens_BK3D + time_BK1D).flatten(1, 2)
        return timed_BLD


class Block(nn.Module):
    """A pre-norm GPT-2 block with ReLU."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention_in = nn.Linear(config.width, 3 * config.width)
        self.attention_out = nn.Linear(config.width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp_in = nn.Linear(config.width, 4 * config.width)
        self.mlp_out = nn.Linear(4 * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLD: Tensor, keep: slice, attend: Attention) -> Tensor:
        """Return the tokens at the positions `keep`, each after attending to the tokens that `attend` shows it."""
        normal_BLD = self.attention_norm(x_BLD)
        inputs = (normal_BLD[:, keep], normal_BLD, normal_BLD)
        products = (F.linear(x, *layer) for x, layer in zip(inputs, self.queries_keys_values(), strict=True))
        mixed = attend(*(x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in products))
        return self.through_mlp(x_BLD[:, keep] + self.dropout(self.attention_out(mixed.transpose(1, 2).flatten(2))))

    def queries_keys_values(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return weight (D, D) and bias (D,) of queries, of keys and of values."""
        return tuple(zip(self.attention_in.weight.chunk(3), self.attention_in.bias.chunk(3), strict=True))

    def through_mlp(self, kept_BQD: Tensor) -> Tensor:
        """Return tokens (B, Q, D) after the MLP."""
        # Flat, because autograd copies what is changed in place in a view, as the output of a layer on three axes is.
        hidden_NE = F.relu(self.mlp_in(self.mlp_norm(kept_BQD).flatten(0, 1)), inplace=True)
        output_BQD: Tensor = kept_BQD + self.dropout(self.mlp_out(hidden_NE)).view_as(kept_BQD)
        return output_BQD


def blocks_of(backbone: "PromptDT") -> Iterator[Block]:
    """Yield the blocks."""
    for block in backbone.blocks:
        assert isinstance(block, Block)
        yield block


class PromptDT(nn.Module):
    """The backbone: history and prompt in, actions out."""

    def __init__(self, config: BackboneConfig, state_dim: int, action_dim: int, horizon: int) -> None:
        """Build the network; blocks and head start as GPT-2's (normal, deviation 0.02, zero biases)."""
        super().__init__()
        self.config = config
        self.embed_history = StepEmbedding(state_dim, action_dim, config, horizon)
        self.embed_prompt = StepEmbedding(state_dim, action_dim, config, horizon)
        self.embedding_norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.action_head = nn.Linear(config.width, action_dim)
        for module in [*self.blocks.modules(), self.action_head]:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, history: Segments, prompt: Prompt) -> Tensor:
        """Return an action (B, K, A) in (-1, 1) for every history step; those of padded steps mean nothing.

        To play episodes step by step, `models/decoding.py` keeps what does not change between steps.
        """
        prompt_BPD = self.prompt_tokens(prompt)
        states = slice(prompt_BPD.shape[1] + 1, None, 3)
        # The last action token comes after every token that is read, so it is left out.
        tokens_BLD = torch.cat([prompt_BPD, self.embed_history(history)[:, :-1]], dim=1)
        to_all, to_states = self._attentions(prompt_BPD.shape[1], tokens_BLD, states)
        hidden_BLD = self.dropout(self.embedding_norm(tokens_BLD))
        for block in self.blocks[:-1]:
            hidden_BLD = block(hidden_BLD, slice(None), to_all)
        # Actions are read at state tokens only, so the last block computes no others.
        return self.read_actions(self.blocks[-1](hidden_BLD, states, to_states))

    def prompt_tokens(self, prompt: Prompt) -> Tensor:
        """Return the tokens (B, P, D) that stand before the history, none if the backbone sees no prompt."""
        if isinstance(prompt, Tensor):
            return prompt
        tokens_BPD: Tensor = self.embed_prompt(prompt if self.config.sees_prompt else prompt.first(0))
        return tokens_BPD

    def prompt_hidden(self, prompt: Prompt) -> Tensor:
        """Return what the blocks make of the prompt's tokens (B, P, D), which see none of the history."""
        hidden_BPD: Tensor = self.embedding_norm(self.prompt_tokens(prompt))
        attend = causal_attention(hidden_BPD.shape[1], slice(None), hidden_BPD.device)
        for block in self.blocks:
            hidden_BPD = block(hidden_BPD, slice(None), attend)
        return hidden_BPD

    def read_actions(self, hidden_BQD: Tensor) -> Tensor:
        """Return the actions (B, Q, A) that state tokens decide on."""
        return torch.tanh(self.action_head(self.final_norm(hidden_BQD)))

    def _attentions(self, num_prompt: int, tokens_BLD: Tensor, states: slice) -> tuple[Attention, Attention]:
        """Return the attention of all tokens and that of the state tokens."""
        num_tokens, device = tokens_BLD.shape[1], tokens_BLD.device
        if self.config.attention == "full":
            return causal_attention(num_tokens, slice(None), device), causal_attention(num_tokens, states, device)
        band = 3 * self.config.history
        return (
            banded_attention(num_prompt, band, slice(None), device),
            banded_attention(num_prompt, band, slice(1, None, 3), device),
        )
