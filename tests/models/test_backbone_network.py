"""The Prompt-DT's network: what an action may depend on, its size, and the sizes it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor

from promptdiffuser.data.windows import Segments
from promptdiffuser.models.backbone import BackboneConfig, PromptDT

STATE_DIM, ACTION_DIM, HORIZON, HISTORY, PROMPT_LENGTH = 5, 2, 30, 6, 3


@pytest.fixture(scope="module")
def backbone() -> PromptDT:
    """Return a backbone whose weights are large enough that every input moves the actions."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BackboneConfig(16, layers=2, heads=2, history=HISTORY, prompt_length=PROMPT_LENGTH)
        model = PromptDT(config, STATE_DIM, ACTION_DIM, HORIZON).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def segments(rows: int, steps: int, seed: int) -> Segments:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(rows, steps, *shape, generator=generator)

    starts = torch.randint(HORIZON - steps, (rows, 1), generator=generator)
    return Segments(
        returns_to_go=normal(),
        states=normal(STATE_DIM),
        actions=normal(ACTION_DIM).clamp(-1, 1),
        rewards=normal(),
        timesteps=starts + torch.arange(steps),
        valid=torch.ones(rows, steps, dtype=torch.bool),
    )


def with_steps_from(base: Segments, other: Segments, first: int) -> Segments:
    """Return `base` with every field replaced by `other`'s from step `first` on."""
    parts = {
        name: torch.cat([getattr(base, name)[:, :first], getattr(other, name)[:, first:]], dim=1)
        for name in ("returns_to_go", "states", "actions", "rewards", "timesteps", "valid")
    }
    return Segments(**parts)


@pytest.mark.parametrize("changed", range(1, HISTORY))
def test_an_action_does_not_see_later_steps(backbone: PromptDT, changed: int) -> None:
    history, prompt = segments(4, HISTORY, 0), segments(4, PROMPT_LENGTH, 1)
    before = backbone(history, prompt)
    after = backbone(with_steps_from(history, segments(4, HISTORY, 2), changed), prompt)
    torch.testing.assert_close(after[:, :changed], before[:, :changed])
    assert ((after - before)[:, changed:].abs().amax(-1) > 1e-3).all()


def test_an_action_does_not_see_itself_but_the_next_one_does(backbone: PromptDT) -> None:
    history, prompt = segments(4, HISTORY, 0), segments(4, PROMPT_LENGTH, 1)
    before = backbone(history, prompt)
    history.actions[:, 2] *= -1
    after = backbone(history, prompt)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert ((after - before)[:, 3:].abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("name", ["returns_to_go", "states", "timesteps"])
def test_an_action_sees_its_own_step(backbone: PromptDT, name: str) -> None:
    history, prompt = segments(4, HISTORY, 0), segments(4, PROMPT_LENGTH, 1)
    before = backbone(history, prompt)
    getattr(history, name)[:, -1] += 1
    assert ((backbone(history, prompt) - before)[:, -1].abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("name", ["returns_to_go", "states", "actions", "timesteps"])
@pytest.mark.parametrize("step", range(PROMPT_LENGTH))
def test_every_action_sees_every_part_of_the_prompt(backbone: PromptDT, name: str, step: int) -> None:
    history, prompt = segments(4, HISTORY, 0), segments(4, PROMPT_LENGTH, 1)
    before = backbone(history, prompt)
    getattr(prompt, name)[:, step] += 1
    assert ((backbone(history, prompt) - before).abs().amax(-1) > 1e-5).all()


def test_rewards_are_not_an_input(backbone: PromptDT) -> None:
    history, prompt = segments(4, HISTORY, 0), segments(4, PROMPT_LENGTH, 1)
    before = backbone(history, prompt)
    history.rewards.add_(1)
    prompt.rewards.add_(1)
    assert torch.equal(backbone(history, prompt), before)


@pytest.mark.parametrize(("sees_prompt", "sees_returns"), [(False, True), (True, False), (False, False)])
def test_baselines_do_not_see_what_they_are_told_not_to(sees_prompt: bool, sees_returns: bool) -> None:
    """MT-ORL sees no prompt, Prompt-MT-BC no returns-to-go, MT-BC neither."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BackboneConfig(16, layers=2, sees_prompt=sees_prompt, sees_returns=sees_returns)
        model = PromptDT(config, STATE_DIM, ACTION_DIM, HORIZON).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    history, prompt = segments(4, HISTORY, 0), segments(4, PROMPT_LENGTH, 1)
    before = model(history, prompt)
    assert before.shape == (4, HISTORY, ACTION_DIM)
    prompt.states.add_(1)
    assert torch.equal(model(history, prompt), before) == (not sees_prompt)
    before = model(history, prompt)
    prompt.returns_to_go.add_(1)
    history.returns_to_go.add_(1)
    assert torch.equal(model(history, prompt), before) == (not sees_returns)


@pytest.mark.parametrize("length", [1, 4])
def test_padding_on_the_right_changes_no_valid_action(backbone: PromptDT, length: int) -> None:
    history, prompt = segments(4, HISTORY, 0), segments(4, PROMPT_LENGTH, 1)
    short = Segments(**{name: tensor[:, :length] for name, tensor in vars(history).items()})
    padded = Segments(
        **{
            name: torch.cat([tensor[:, :length], torch.zeros_like(tensor[:, length:])], dim=1)
            for name, tensor in vars(history).items()
        }
    )
    torch.testing.assert_close(backbone(padded, prompt)[:, :length], backbone(short, prompt))


def test_a_row_does_not_depend_on_its_batch(backbone: PromptDT) -> None:
    history, prompt = segments(5, HISTORY, 0), segments(5, PROMPT_LENGTH, 1)
    together = backbone(history, prompt)
    for row in range(5):
        only = slice(row, row + 1)
        torch.testing.assert_close(backbone(history.select(only), prompt.select(only)), together[only])


@pytest.mark.parametrize("prompt_length", [1, 2, 11, 21])
def test_prompts_of_every_length_are_read_whole(backbone: PromptDT, prompt_length: int) -> None:
    """The original network drops the last return-to-go of prompts of 1, 11 and 21 steps."""
    history, prompt = segments(2, HISTORY, 0), segments(2, prompt_length, 1)
    before = backbone(history, prompt)
    prompt.returns_to_go[:, -1] += 1
    after = backbone(history, prompt)
    assert after.shape == (2, HISTORY, ACTION_DIM)
    assert ((after - before).abs().amax(-1) > 1e-5).all()


def test_actions_are_within_their_range(backbone: PromptDT) -> None:
    actions = backbone(segments(50, HISTORY, 0), segments(50, PROMPT_LENGTH, 1))
    assert actions.abs().max() <= 1
    assert actions.abs().max() > 0.5


def test_dropout_acts_in_training_alone() -> None:
    model = PromptDT(BackboneConfig(16, 1, dropout=0.5), STATE_DIM, ACTION_DIM, HORIZON)
    inputs = segments(4, HISTORY, 0), segments(4, PROMPT_LENGTH, 1)
    assert not torch.equal(model(*inputs), model(*inputs))
    model.eval()
    assert torch.equal(model(*inputs), model(*inputs))


def test_published_size_has_the_parameters_that_its_formula_gives() -> None:
    """Width 128, 3 layers, 1 head on cheetah-vel: 20 observations, 6 actions, horizon 200."""
    model = PromptDT(BackboneConfig(), state_dim=20, action_dim=6, horizon=200)
    D, S, A, T = 128, 20, 6, 200
    embeddings = 2 * ((1 + S + A + 3 + T) * D)  # prompt and history; 3 biases
    attention, mlp, norms = 4 * D * D + 4 * D, 8 * D * D + 5 * D, 4 * D
    expected = embeddings + 3 * (attention + mlp + norms) + 2 * 2 * D + (D + 1) * A
    assert sum(parameter.numel() for parameter in model.parameters()) == expected == 654_982


@pytest.mark.parametrize(
    "values",
    [
        {"width": 0},
        {"layers": 0},
        {"heads": 0},
        {"history": 0},
        {"prompt_length": -1},
        {"heads": 3},
        {"dropout": 1.0},
        {"dropout": -0.1},
    ],
)
def test_impossible_size_is_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"backbone\.{next(iter(values))} must .*{next(iter(values.values()))}"):
        BackboneConfig(**values)
