"""Deciding one step at a time for many episodes, with everything kept that does not change.

The prompt stands before the history and never sees it, so what the history sees of it in every layer is computed once
an episode. What else can be kept depends on the attention:

- banded: what is seen of a token depends on no later token, and is seen for a fixed number of tokens. Each decision
  computes its own three tokens; `CachedDecoder` is exact.
- full, over a window that slides: the first token of the window goes with every step, and with it what all others saw,
  so cached hidden states would be wrong. What a token is before it has seen others stays: its embedding, and in the
  first layer its query and what others see of it. `WindowDecoder` keeps these and computes the rest anew.

Rows are episodes; they begin at different moments, all write to the same place of a ring at every decision, and a row
masks what was written before it began. A place holds the three tokens that a decision adds: the action of the step
before, the return-to-go and the state.

Axes: B rows, H heads, E features of a head, Q tokens that ask, L tokens that are seen (the prompt's, then the ring's),
P prompt tokens, R ring tokens, D width, A action.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptdiffuser.data.windows import Segments
from promptdiffuser.models.attention import causal_attention
from promptdiffuser.models.backbone import Block, Prompt, PromptDT, blocks_of

TOKENS_A_STEP = 3
_HIDDEN = -1e30
"""Added to the scores of tokens that are not seen; finite, so that a row that sees nothing yields no NaN."""


class _Layer:
    """A block as decoding computes it: what asks, what is remembered of a token, and what becomes of a mixture of it.

    With several heads, keys and values are remembered. With one, neither is needed: the normalised token m is
    remembered, and two of a token's twelve D x D products are multiplied out beforehand. A score is
    (W_q n + b_q) . (W_k m + b_k): so W_k^T (W_q n + b_q) asks and m is the key, as b_k adds the same to all scores of a
    query, which softmax does not see. And a mixture's weights sum to 1, so W_o (W_v m + b_v) + b_o is computed of the
    mixture of m instead of each m.
    """

    @torch.no_grad()
    def __init__(self, exact: Block, block: Block) -> None:
        """Take a block as it was trained, and the same in the decoder's number format."""
        self.heads, self._block = block.heads, block
        (query, *remembered), output = exact.queries_keys_values(), block.attention_out
        if self.heads == 1:
            ((key, _), (value, value_bias)), remembered = remembered, []
            query = (key.mT @ query[0], query[1] @ key)
            output = copy.deepcopy(exact.attention_out)
            output.bias = nn.Parameter(output.weight @ value_bias + output.bias)
            output.weight = nn.Parameter(output.weight @ value)
        like = block.mlp_in.weight
        self._query, self._output = [x.to(like) for x in query], output.to(like)
        self._remembered = [[x.to(like) for x in of_one] for of_one in remembered]
        self.num_remembered = len(remembered) or 1

    def norm(self, x_BQD: Tensor) -> Tensor:
        """Return the tokens as attention reads them."""
        normal_BQD: Tensor = self._block.attention_norm(x_BQD)
        return normal_BQD

    def queries(self, normal_BQD: Tensor) -> Tensor:
        """Return (B, H, Q, E)."""
        return self._split(F.linear(normal_BQD, *self._query))

    def remembered(self, normal_BQD: Tensor) -> list[Tensor]:
        """Return what is kept of tokens, each (B, H, Q, E): the first is their keys, the last is their values."""
        return [self._split(F.linear(normal_BQD, *of_one)) for of_one in self._remembered] or [self._split(normal_BQD)]

    def finish(self, kept_BQD: Tensor, mixed: Tensor) -> Tensor:
        """Return the tokens that asked, after what they attended to, (B, H, Q, E), and the MLP."""
        return self._block.through_mlp(kept_BQD + self._output(mixed.transpose(1, 2).flatten(2)))

    def _split(self, x_BQ: Tensor) -> Tensor:
        split: Tensor = x_BQ.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split


class Decoder:
    """Plays rows of episodes with a frozen backbone."""

    def __init__(self, backbone: PromptDT, num_rows: int, dtype: torch.dtype) -> None:
        """Allocate memory for a number of rows.

        Args:
            backbone: The backbone, on the device to use; it is copied if its numbers have another format.
            num_rows: Episodes played at a time.
            dtype: Number format of weights and hidden states, float32 or bfloat16 as a rule.
        """
        config = backbone.config
        self.backbone = copy.deepcopy(backbone).to(dtype) if _dtype_of(backbone) != dtype else backbone
        self.dtype, self.device = dtype, backbone.action_head.weight.device
        self.layers = [_Layer(*pair) for pair in zip(blocks_of(backbone), blocks_of(self.backbone), strict=True)]
        self.num_prompt = TOKENS_A_STEP * config.prompt_length * config.sees_prompt
        self.places = self.num_places(config.history)
        self._now = 0
        """Decisions made since all rows began together; the place written next is this modulo `places`."""
        self._since_start = 0
        """Decisions made since any row began."""
        self.steps_B = torch.zeros(num_rows, dtype=torch.int64, device=self.device)
        """Of each row: steps decided already in its episode."""
        num_tokens = self.num_prompt + TOKENS_A_STEP * self.places
        shape = (num_rows, config.heads, num_tokens, config.width // config.heads)
        self._memory = [
            [torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(layer.num_remembered)]
            for layer in self.layers
        ]
        """Of each layer: what is remembered of the prompt's tokens and the ring's."""
        self._embedding, self._times = self._one_embedding()
        self._biases: dict[int, Tensor] = {}
        """Place -> what is added to the scores once the ring is full in every row."""

    @staticmethod
    def num_places(history: int) -> int:
        """Return the steps that the ring holds."""
        raise NotImplementedError

    @torch.inference_mode()
    def start(self, rows_N: Tensor, prompts: Prompt) -> None:
        """Begin an episode in some rows, with one prompt each."""
        if len(rows_N) == len(self.steps_B):
            self._now = 0  # The ring is empty again, so the first decisions see short windows.
        self.steps_B[rows_N], self._since_start = 0, 0
        if not self.num_prompt:
            return
        causal = causal_attention(self.num_prompt, slice(None), self.device)
        hidden_BPD = self.backbone.embedding_norm(self.backbone.prompt_tokens(self._in_format(prompts)))
        for number, layer in enumerate(self.layers):
            normal_BPD = layer.norm(hidden_BPD)
            written = self._remember(number, slice(0, self.num_prompt), normal_BPD, rows_N)
            hidden_BPD = layer.finish(hidden_BPD, causal(layer.queries(normal_BPD), written[0], written[-1]))

    @torch.inference_mode()
    def decide(self, actions_before_BA: Tensor, returns_to_go_B: Tensor, states_BS: Tensor) -> Tensor:
        """Return the actions (B, A), float32, for the next step of every row, all in the networks' units.

        Args:
            actions_before_BA: The action of each row's step before; of a row that begins, it is not read.
            returns_to_go_B: Returns-to-go of the step.
            states_BS: States of the step.
        """
        inputs_BI = torch.cat([actions_before_BA, returns_to_go_B[:, None], states_BS], dim=1).to(self.dtype)
        tokens_B3D = (F.linear(inputs_BI, self._embedding) + self._times[self.steps_B]).unflatten(
            1, (TOKENS_A_STEP, -1)
        )
        state_B1D = self._run(self.backbone.embedding_norm(tokens_B3D), self._now % self.places)
        self._now, self._since_start = self._now + 1, self._since_start + 1
        self.steps_B += 1
        return self.backbone.read_actions(state_B1D)[:, 0].float()

    def keep(self, rows_N: Tensor) -> None:
        """Drop all other rows."""
        self.steps_B = self.steps_B[rows_N]
        self._memory = [[remembered[rows_N] for remembered in of_layer] for of_layer in self._memory]

    def _run(self, tokens_B3D: Tensor, place: int) -> Tensor:
        """Return the last hidden states (B, 1, D) of the state tokens; `place` is where the ring takes the tokens."""
        raise NotImplementedError

    def _one_embedding(self) -> tuple[Tensor, Tensor]:
        """Return the three embeddings of a step as one product, (3 D, A + 1 + S), and what each step adds, (T, 3 D)."""
        embed = self.backbone.embed_history
        returns_weight = (
            embed.return_to_go.weight if embed.sees_returns else torch.zeros_like(embed.return_to_go.weight)
        )
        weight = torch.block_diag(embed.action.weight, returns_weight, embed.state.weight)
        bias = torch.cat([embed.action.bias, embed.return_to_go.bias, embed.state.bias])
        time_TD = embed.timestep.weight
        before_TD = time_TD[(torch.arange(len(time_TD), device=self.device) - 1).clamp(min=0)]
        return weight, torch.cat([before_TD, time_TD, time_TD], dim=1) + bias

    def _used_places(self) -> int:
        """Return how many places of the ring have been written."""
        return min(self._now + 1, self.places)

    def _order(self) -> Tensor:
        """Return (R,) how many tokens ago each token of the used places came; those being written end with 0."""
        used = self._used_places()
        steps_ago = (self._now - torch.arange(used, device=self.device)) % self.places
        return (TOKENS_A_STEP * steps_ago[:, None] + torch.tensor([2, 1, 0], device=self.device)).flatten()

    def _bias(self) -> Tensor:
        """Return what is added to the scores of the tokens that ask, (Q, L) or (B, 1, Q, L)."""
        place = self._now % self.places
        # By then every row fills the ring, and all that matters is where the newest step stands in it.
        is_full = self._since_start >= self.places
        if is_full and place in self._biases:
            return self._biases[place]
        ago_R = self._order()
        common_QL = self._additive(F.pad(self._sees(ago_R), (self.num_prompt, 0), value=True))
        if is_full:
            self._biases[place] = common_QL
            return common_QL
        # A row that has decided n steps has n + 1 tokens of states and of returns-to-go, and n of actions.
        own_BR = ago_R < TOKENS_A_STEP * self.steps_B[:, None] + 2
        own_BL = self._additive(F.pad(own_BR, (self.num_prompt, 0), value=True))
        return common_QL + own_BL[:, None, None]

    def _sees(self, ago_R: Tensor) -> Tensor:
        """Return (Q, R): whether the tokens that ask see those of the ring, which came so many tokens ago."""
        raise NotImplementedError

    def _additive(self, seen: Tensor) -> Tensor:
        return torch.zeros(seen.shape, dtype=self.dtype, device=self.device).masked_fill_(~seen, _HIDDEN)

    def _remember(
        self, number: int, tokens: slice, normal_BQD: Tensor, rows: slice | Tensor = slice(None)
    ) -> list[Tensor]:
        """Write to a layer's memory at the places of some tokens, and return what was written."""
        written = self.layers[number].remembered(normal_BQD)
        for remembered, new in zip(self._memory[number], written, strict=True):
            remembered[rows, :, tokens] = new
        return written

    def _attend(self, number: int, kept_BQD: Tensor, query_BHQE: Tensor, bias: Tensor) -> Tensor:
        """Return the tokens that ask after a layer's attention and MLP, (B, Q, D)."""
        layer, query = self.layers[number], query_BHQE.flatten(0, 1)
        seen = slice(0, self.num_prompt + TOKENS_A_STEP * self._used_places())
        key, value = (self._memory[number][which][:, :, seen].flatten(0, 1) for which in (0, -1))
        if bias.ndim > 2:
            bias = bias.expand(-1, layer.heads, -1, -1).flatten(0, 1)
        scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)
        return layer.finish(kept_BQD, (scores.softmax(-1) @ value).unflatten(0, (-1, layer.heads)))

    def _in_format(self, prompts: Prompt) -> Prompt:
        if isinstance(prompts, Tensor):
            return prompts.to(self.device, self.dtype)
        return Segments(
            returns_to_go=prompts.returns_to_go.to(self.device, self.dtype),
            states=prompts.states.to(self.device, self.dtype),
            actions=prompts.actions.to(self.device, self.dtype),
            rewards=prompts.rewards.to(self.device),
            timesteps=prompts.timesteps.to(self.device),
            valid=prompts.valid.to(self.device),
        )


class CachedDecoder(Decoder):
    """For banded attention: every decision computes its three tokens, and all others are in the cache."""

    @staticmethod
    def num_places(history: int) -> int:
        # One more than a band: its first tokens are still seen by the action and the return-to-go of the newest step.
        return history + 1

    def _run(self, tokens_B3D: Tensor, place: int) -> Tensor:
        hidden_BQD = tokens_B3D
        new = slice(self.num_prompt + TOKENS_A_STEP * place, self.num_prompt + TOKENS_A_STEP * (place + 1))
        bias = self._bias()
        for number, layer in enumerate(self.layers):
            normal_BQD = layer.norm(hidden_BQD)
            self._remember(number, new, normal_BQD)
            if layer is self.layers[-1]:
                # Actions are read at state tokens only.
                hidden_BQD, normal_BQD, bias = hidden_BQD[:, -1:], normal_BQD[:, -1:], bias[..., -1:, :]
            hidden_BQD = self._attend(number, hidden_BQD, layer.queries(normal_BQD), bias)
        return hidden_BQD

    def _sees(self, ago_R: Tensor) -> Tensor:
        behind_QR = ago_R - ago_R.new_tensor([[2], [1], [0]])
        return (behind_QR >= 0) & (behind_QR < TOKENS_A_STEP * self.backbone.config.history)


class WindowDecoder(Decoder):
    """For full attention: every decision computes the last steps anew, all but the first layer's inputs."""

    def __init__(self, backbone: PromptDT, num_rows: int, dtype: torch.dtype) -> None:
        """Allocate memory for a number of rows; see `Decoder`."""
        super().__init__(backbone, num_rows, dtype)
        shape = (num_rows, TOKENS_A_STEP * self.places, backbone.config.width)
        self._tokens_BRD = torch.zeros(shape, dtype=dtype, device=self.device)
        self._queries_BHRE = torch.zeros_like(self._memory[0][0][:, :, self.num_prompt :])

    @staticmethod
    def num_places(history: int) -> int:
        return history

    def keep(self, rows_N: Tensor) -> None:
        """Drop all other rows."""
        super().keep(rows_N)
        self._tokens_BRD, self._queries_BHRE = self._tokens_BRD[rows_N], self._queries_BHRE[rows_N]

    def _run(self, tokens_B3D: Tensor, place: int) -> Tensor:
        new = slice(TOKENS_A_STEP * place, TOKENS_A_STEP * (place + 1))
        state, used = slice(new.stop - 1, new.stop), slice(0, TOKENS_A_STEP * self._used_places())
        normal_B3D = self.layers[0].norm(tokens_B3D)
        self._tokens_BRD[:, new], self._queries_BHRE[:, :, new] = tokens_B3D, self.layers[0].queries(normal_B3D)
        self._remember(0, slice(self.num_prompt + new.start, self.num_prompt + new.stop), normal_B3D)

        bias = self._bias()
        # Actions are read at the newest state token only, so the last layer asks for no other.
        asking = used if len(self.layers) > 1 else state
        query_BHQE = self._queries_BHRE[:, :, asking]
        hidden_BQD = self._attend(0, self._tokens_BRD[:, asking], query_BHQE, bias[..., asking, :])
        for number, layer in enumerate(self.layers[1:], 1):
            normal_BRD = layer.norm(hidden_BQD)
            self._remember(number, slice(self.num_prompt, self.num_prompt + used.stop), normal_BRD)
            asking = used if layer is not self.layers[-1] else state
            query_BHQE = layer.queries(normal_BRD[:, asking])
            hidden_BQD = self._attend(number, hidden_BQD[:, asking], query_BHQE, bias[..., asking, :])
        return hidden_BQD

    def _sees(self, ago_R: Tensor) -> Tensor:
        # The oldest place holds an action of the step before the window: it is not seen.
        return (ago_R >= ago_R[:, None]) & (ago_R < TOKENS_A_STEP * self.places - 1)


def make_decoder(backbone: PromptDT, num_rows: int, dtype: torch.dtype) -> Decoder:
    """Return the decoder for a backbone's attention."""
    decoder = CachedDecoder if backbone.config.attention == "banded" else WindowDecoder
    return decoder(backbone, num_rows, dtype)


def _dtype_of(backbone: PromptDT) -> torch.dtype:
    return backbone.action_head.weight.dtype
