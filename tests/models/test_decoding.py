"""Deciding one step at a time: exactly as the whole window or episode does, whenever the rows begin."""

import dataclasses

import pytest
import torch

from promptdiffuser.data.windows import Segments
from promptdiffuser.models.backbone import BackboneConfig, PromptDT
from promptdiffuser.models.decoding import CachedDecoder, Decoder, WindowDecoder, make_decoder
from tests.models.segments import ACTION_DIM, STATE_DIM, segments

HORIZON, ROWS = 20, 3


def network(**changes: object) -> PromptDT:
    """Return a float64 backbone whose weights are large enough that every input moves the actions."""
    config = dataclasses.replace(BackboneConfig(16, 2, 2, history=4, prompt_length=3, dropout=0.0), **changes)
    model = PromptDT(config, STATE_DIM, ACTION_DIM, HORIZON).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return model


class Player:
    """Plays recorded episodes, whatever is decided, and compares every decision with the whole in one forward pass."""

    def __init__(self, model: PromptDT, decoder: Decoder) -> None:
        self.model, self.decoder = model, decoder
        self.episodes, self.prompts = segments(ROWS, HORIZON, 1), segments(ROWS, 3, 2)
        self.at = [0] * ROWS
        """Step of each row's episode; row r plays recording r."""
        self.recordings = list(range(ROWS))

    def start(self, rows: list[int]) -> None:
        played = torch.tensor([self.recordings[row] for row in rows])
        self.decoder.start(torch.tensor(rows), self.prompts.select(played))
        for row in rows:
            self.at[row] = 0

    def keep(self, rows: list[int]) -> None:
        self.decoder.keep(torch.tensor(rows))
        self.at, self.recordings = [self.at[row] for row in rows], [self.recordings[row] for row in rows]

    def step(self) -> None:
        where = list(zip(self.recordings, self.at, strict=True))
        # The action before the first must not be read.
        before = [self.episodes.actions[r, t - 1] if t else torch.full((ACTION_DIM,), torch.nan) for r, t in where]
        decided = self.decoder.decide(
            torch.stack(before).nan_to_num(1e3),
            torch.stack([self.episodes.returns_to_go[r, t] for r, t in where]),
            torch.stack([self.episodes.states[r, t] for r, t in where]),
        )
        torch.testing.assert_close(decided, torch.stack([self.expected(r, t) for r, t in where]).float())
        self.at = [t + 1 for t in self.at]

    def expected(self, recording: int, step: int) -> torch.Tensor:
        config = self.model.config
        first = 0 if config.attention == "banded" else max(0, step - config.history + 1)
        seen = {f.name: getattr(self.episodes, f.name)[recording, first : step + 1][None] for f in FIELDS}
        return self.model(Segments(**seen), self.prompts.select(slice(recording, recording + 1)))[0, -1]


FIELDS = dataclasses.fields(Segments)


@pytest.mark.parametrize("attention", ["full", "banded"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("history", [1, 4, HORIZON])
@pytest.mark.parametrize("sees", [{}, {"sees_prompt": False}, {"sees_returns": False}], ids=["all", "mt-orl", "bc"])
def test_every_decision_is_that_of_the_whole_whenever_its_row_began(
    attention: str, layers: int, heads: int, history: int, sees: dict[str, bool]
) -> None:
    model = network(attention=attention, layers=layers, heads=heads, history=history, **sees)
    player = Player(model, make_decoder(model, ROWS, torch.float64))
    player.start([0, 1, 2])
    for step in range(HORIZON + 11):
        if step == 5:
            player.start([1])
        if step == 11:
            player.start([0, 2])
        if step == 25:
            player.start([1])
        if step == 28:
            player.keep([2, 1])
        player.step()


@pytest.mark.parametrize("attention", ["full", "banded"])
def test_rows_that_begin_again_together_see_nothing_of_before(attention: str) -> None:
    model = network(attention=attention)
    player = Player(model, make_decoder(model, ROWS, torch.float64))
    for _ in range(2):
        player.start([0, 1, 2])
        for _ in range(7):
            player.step()


def test_the_attention_chooses_the_decoder() -> None:
    assert isinstance(make_decoder(network(attention="banded"), 1, torch.float64), CachedDecoder)
    assert isinstance(make_decoder(network(), 1, torch.float64), WindowDecoder)


@pytest.mark.parametrize("attention", ["full", "banded"])
@pytest.mark.parametrize("heads", [1, 2])
def test_another_number_format_leaves_the_backbone_as_it_was(attention: str, heads: int) -> None:
    model = network(attention=attention, heads=heads)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decoder = make_decoder(model, ROWS, torch.float32)
    decoder.start(torch.arange(ROWS), segments(ROWS, 3, 2))
    decided = decoder.decide(torch.zeros(ROWS, ACTION_DIM), torch.zeros(ROWS), torch.ones(ROWS, STATE_DIM))
    assert decided.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float64
        assert torch.equal(value, before[name])
