"""Tuning on few-shot episodes: whose windows, whose losses, which state is kept."""

import copy
import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from promptdiffuser.data.windows import PromptPool, ResidentEpisodes
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.training.backbone_objective import freeze
from promptdiffuser.training.model_folders import build_backbone
from promptdiffuser.training.trainings import BackboneTraining, make_resident
from promptdiffuser.training.tuning import FewShotTuning, TuningConfig, tune, window_planner
from tests.training.small_backbone import CPU, FAMILY, short_episodes, small_training

CONFIG = TuningConfig(steps=12, learning_rate=0.05, batch_steps=12, check_every=3, precision="fp32")
PROMPTS = 5
FewShot = tuple[PromptDT, ResidentEpisodes, PromptPool]


@pytest.fixture(scope="module", params=["full", "banded"])
def few_shot(request: pytest.FixtureRequest) -> FewShot:
    """Return a backbone and the four episodes of a task, of lengths 5 to 8."""
    episodes = short_episodes().select(slice(0, 4))
    training: BackboneTraining = small_training(episodes)
    config = dataclasses.replace(training.backbone, attention=request.param)
    backbone = build_backbone(config, FAMILY, "tuning")
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(2.0)
    return freeze(backbone), *make_resident(training, episodes, CPU)


def own_prompts(few_shot: FewShot, config: TuningConfig = CONFIG, num_prompts: int = PROMPTS) -> FewShotTuning:
    """Return the tuning of free tokens, one set a prompt."""
    backbone, windows, pool = few_shot
    tokens = backbone.prompt_tokens(pool.prompts_at(np.arange(num_prompts) % 3)).detach()
    tuned = nn.Parameter(tokens + 0.1 * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0)))
    return FewShotTuning(
        nn.ParameterList([tuned]),
        backbone,
        lambda rows: tuned[rows],
        windows,
        pool.index,
        config,
        ("test",),
        num_prompts,
    )


def one_for_all(few_shot: FewShot, config: TuningConfig = CONFIG) -> FewShotTuning:
    """Return the tuning of all weights of a copy."""
    backbone, windows, pool = few_shot
    model = copy.deepcopy(backbone).requires_grad_()
    return FewShotTuning(model, model, pool.prompts.select, windows, pool.index, config, ("test",))


def values(task: FewShotTuning) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in task.model.parameters()]


def test_each_prompts_loss_is_that_of_its_own_windows(few_shot: FewShot) -> None:
    task, (backbone, windows, _) = own_prompts(few_shot), few_shot
    plan = task.planner.at(3)
    per_prompt = len(plan.episodes) // PROMPTS
    assert per_prompt == (2 if backbone.config.attention == "full" else 1)
    for prompt, loss in enumerate(task.losses(plan)):
        errors = []
        for row in range(prompt * per_prompt, (prompt + 1) * per_prompt):
            length = int(windows.lengths[plan.episodes[row]]) - int(plan.starts[row])
            history = windows.segments(plan.episodes[[row]], plan.starts[[row]], min(length, plan.window_steps))
            tokens = next(iter(task.model.parameters()))[[prompt]]
            errors.append((backbone(history, tokens) - history.actions).square()[0])
        assert loss.detach().item() == pytest.approx(torch.cat(errors).mean().item(), rel=1e-5)


def test_windows_may_be_shorter_and_are_never_longer_than_the_backbone_knows(few_shot: FewShot) -> None:
    backbone, _, pool = few_shot
    trained = backbone.config.window_steps or int(pool.index.lengths.max())
    for asked, found in ((3, 3), (0, trained), (100, trained)):
        planner = window_planner(backbone, pool.index, 12, PROMPTS, ("test",), asked)
        assert planner.at(0).window_steps == found
        assert planner.batch_size == PROMPTS * max(1, 12 // found)


def test_updates_see_the_first_episodes_and_held_out_losses_the_last(few_shot: FewShot) -> None:
    for task in (own_prompts(few_shot), one_for_all(few_shot)):
        seen = np.concatenate([task.planner.at(step).episodes for step in range(30)])
        asked = np.concatenate([task.planner.at(step).prompt_episodes for step in range(30)])
        assert set(seen) == set(asked) == {0, 1, 2}
        before = task.held_out_losses()
        task.windows.actions[3] += 1
        assert (task.held_out_losses() != before).all()
        task.windows.actions[3] -= 1


def test_a_set_of_one_episode_holds_out_none() -> None:
    assert [CONFIG.num_seen(episodes) for episodes in (1, 2, 5)] == [1, 1, 4]
    assert dataclasses.replace(CONFIG, held_out_episodes=0).num_seen(5) == 5


def test_every_prompt_keeps_its_own_best_state(few_shot: FewShot) -> None:
    """Among them prompts that only get worse, as their steps are far too long."""
    config = dataclasses.replace(CONFIG, learning_rate=0.3)
    start = own_prompts(few_shot, config)
    losses, states = [start.held_out_losses()], values(start)
    for steps in (3, 6, 9, 12):
        task = own_prompts(few_shot, dataclasses.replace(config, steps=steps))
        judge = task.held_out_losses
        make_last_state_best(task)
        tune(task)
        losses.append(judge())
        states += values(task)
    tuned = own_prompts(few_shot, config)
    tune(tuned)
    chosen = torch.stack(losses).argmin(0).tolist()
    assert len(set(chosen)) > 1, "the prompts should differ in when they are best"
    assert torch.equal(values(tuned)[0], torch.stack([states[number][prompt] for prompt, number in enumerate(chosen)]))


def make_last_state_best(task: FewShotTuning) -> None:
    looks = itertools.count()
    task.held_out_losses = lambda: torch.full((task.num_groups,), -float(next(looks)))


def test_a_loss_that_is_not_a_number_is_never_the_best(few_shot: FewShot) -> None:
    task, looks = own_prompts(few_shot), itertools.count()
    losses = [torch.nan, 2.0, 1.0, torch.nan, torch.nan]
    states: list[Tensor] = []

    def look() -> Tensor:
        states.append(values(task)[0].clone())
        return torch.full((task.num_groups,), losses[next(looks)])

    task.held_out_losses = look
    tune(task)
    assert len(states) == len(losses)
    assert torch.equal(values(task)[0], states[2])


def test_weights_that_only_get_worse_stay_as_they_were(few_shot: FewShot) -> None:
    """Actions are random here, so what is learned of some episodes is wrong of others."""
    task = one_for_all(few_shot, dataclasses.replace(CONFIG, learning_rate=0.1))
    before = values(task)
    tune(task)
    assert all(torch.equal(old, new) for old, new in zip(before, values(task), strict=True))


@pytest.mark.parametrize("make", [own_prompts, one_for_all])
def test_without_held_out_episodes_the_last_state_has_learned_the_set(
    make: Callable[..., FewShotTuning], few_shot: FewShot
) -> None:
    task = make(few_shot, dataclasses.replace(CONFIG, held_out_episodes=0, steps=40, learning_rate=0.03))
    plans = [task.planner.at(step) for step in range(100, 110)]

    @torch.no_grad()
    def losses() -> Tensor:
        return torch.stack([task.losses(plan) for plan in plans]).mean(0)

    before = losses()
    tune(task)
    assert (losses() < before).all()


def test_prompts_do_not_depend_on_each_other(few_shot: FewShot) -> None:
    """Another first prompt changes no other, to the bit of one product's rounding."""
    tasks = [own_prompts(few_shot) for _ in range(2)]
    with torch.no_grad():
        next(iter(tasks[1].model.parameters()))[0] += 1.0
    for task in tasks:
        tune(task)
    one, other = (values(task)[0] for task in tasks)
    assert not torch.allclose(one[0], other[0])
    torch.testing.assert_close(one[1:], other[1:])


def test_the_backbone_stays_as_it_is(few_shot: FewShot) -> None:
    backbone = few_shot[0]
    before = copy.deepcopy(backbone.state_dict())
    tune(own_prompts(few_shot))
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_other_number_formats_give_nearly_the_same_gradient(few_shot: FewShot, precision: str) -> None:
    rounded = dataclasses.replace(CONFIG, precision=precision)
    losses = [own_prompts(few_shot, config) for config in (CONFIG, rounded)]
    exact, near = (task.held_out_losses() for task in losses)
    torch.testing.assert_close(near, exact, rtol=0.05, atol=0.01)


def test_bad_settings_are_refused_by_name() -> None:
    for name, value in {
        "steps": 0,
        "batch_steps": 0,
        "check_every": 0,
        "held_out_episodes": -1,
        "window_steps": -1,
        "learning_rate": 0.0,
        "weight_decay": -1.0,
        "precision": "fp8",
    }.items():
        with pytest.raises(ValueError, match=name):
            TuningConfig(**{name: value})
