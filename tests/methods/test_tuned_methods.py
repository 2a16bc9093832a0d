"""Methods that tune prompts or weights: how many numbers, that they lower the few-shot loss, what they play."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from promptdiffuser.data.windows import Segments
from promptdiffuser.experiment import AdaptationConfig
from promptdiffuser.methods import METHODS
from promptdiffuser.methods.adaptation import AdaptationInputs, Method
from promptdiffuser.methods.config import settings_of
from promptdiffuser.methods.online import TargetSimulator
from promptdiffuser.methods.prompt_bandit import FEATURES, PromptBanditConfig
from promptdiffuser.methods.prompt_numbers import numbers_of, with_numbers
from promptdiffuser.methods.prompt_tensor_tuning import PromptTensorTuningConfig
from promptdiffuser.methods.prompt_tuning_dt import PromptTuningDTConfig
from promptdiffuser.methods.shared.bandits import num_parameters
from promptdiffuser.methods.soft_prompt import SoftPromptConfig
from promptdiffuser.rollout.stepping import EpisodeStepper, Rollouts
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.family import TaskFamily
from promptdiffuser.training.backbone_objective import squared_action_errors
from promptdiffuser.training.tuning import window_planner
from tests.methods.conftest import CONFIG, FAMILY, FEW_SHOT, NUM_PROMPTS, TASK
from tests.rollout.synthetic_policies import TINY, tiny_backbone, tiny_pool

MakeInputs = Callable[..., AdaptationInputs]
D, L, K = TINY.width, TINY.layers, TINY.prompt_length
RAW = K * (1 + FAMILY.observation_dim + FAMILY.action_dim)
COUNTS = {
    "prompt-tensor-tuning": RAW,
    "prompt-tuning-dt": RAW,
    "prompt-tuning-dt-online": RAW,
    "soft-prompt": 3 * K * D,
    "adapters": 2 * L * (2 * D * 4 + 4 + D),
    "lora": 16 * L * 2 * D,
    "fine-tuning": sum(parameter.numel() for parameter in tiny_backbone(FAMILY).parameters()),
    "fine-tuning-whole-task": sum(parameter.numel() for parameter in tiny_backbone(FAMILY).parameters()),
    **{f"prompt-bandit-{strategy}": num_parameters(1, RAW) for strategy in ("thompson", "ucb", "greedy")},
}


@pytest.mark.parametrize("name", [name for name in COUNTS if not METHODS[name].uses_simulator])
def test_declared_parameters_are_those_of_the_formula(name: str, make_inputs: MakeInputs) -> None:
    assert METHODS[name].adapt(make_inputs(METHODS[name])).cost.tunable_parameters == COUNTS[name]


def one_prompt(family: TaskFamily) -> Segments:
    pool, _ = tiny_pool(family, [family.tasks[0]])
    return pool.prompts


def test_a_meta_world_prompt_has_220_numbers_and_the_published_240_with_what_does_nothing() -> None:
    family = FAMILIES["pick-place"]
    prompt = one_prompt(family)
    assert (family.observation_dim, family.action_dim, prompt.states.shape[1]) == (39, 4, 5)
    assert numbers_of(prompt).shape == (1, 220)
    # The author's code perturbs seven tensors: states, actions, returns-to-go, rewards, done flags, timesteps, mask.
    assert 5 * (39 + 4 + 5) == 240
    assert 240 - 5 * len(["rewards", "done flags", "timesteps", "mask"]) == 220


def test_numbers_are_put_back_where_they_were() -> None:
    prompt = one_prompt(FAMILY)
    numbers = numbers_of(prompt)
    back = with_numbers(prompt, numbers)
    for field in dataclasses.fields(Segments):
        assert torch.equal(getattr(back, field.name), getattr(prompt, field.name)), field.name
    moved = with_numbers(prompt, numbers + 1)
    for name in ("returns_to_go", "states", "actions"):
        torch.testing.assert_close(getattr(moved, name), getattr(prompt, name) + 1)


LONGER = {"steps": 25, "batch_steps": 30, "check_every": 5, "held_out_episodes": 0}
LEARNING = AdaptationConfig(
    prompt_tensor_tuning=PromptTensorTuningConfig(**LONGER, learning_rate=0.05),
    soft_prompt=SoftPromptConfig(**LONGER, learning_rate=0.05),
    prompt_tuning_dt=PromptTuningDTConfig(steps=25, batch_steps=60, smoothing=0.3, step_size=0.1),
    adapters=dataclasses.replace(CONFIG.adapters, **LONGER, learning_rate=1e-2),
    lora=dataclasses.replace(CONFIG.lora, **LONGER, learning_rate=1e-2),
    fine_tuning=dataclasses.replace(CONFIG.fine_tuning, **LONGER, learning_rate=3e-3),
)


def few_shot_loss(method: Method, inputs: AdaptationInputs, after: bool) -> float:
    """Return the action loss over windows of the few-shot episodes, of every prompt of the policy."""
    policy = method.adapt(inputs).policy if after else METHODS["prompt-dt"].adapt(inputs).policy
    plan = window_planner(inputs.backbone, inputs.few_shot.pool.index, 60, NUM_PROMPTS, ("test",)).at(0)
    rows = torch.arange(NUM_PROMPTS).repeat_interleave(len(plan.episodes) // NUM_PROMPTS)
    _, history = inputs.few_shot.windows.windows(0, plan)
    prompts = policy.prompts[rows] if isinstance(policy.prompts, Tensor) else policy.prompts.select(rows)
    with torch.no_grad():
        return float(squared_action_errors(policy.backbone, history, prompts).mean())


@pytest.mark.parametrize("name", [name for name in COUNTS if not METHODS[name].uses_simulator])
def test_tuning_lowers_the_few_shot_loss(name: str, make_inputs: MakeInputs) -> None:
    method = METHODS[name]
    inputs = dataclasses.replace(make_inputs(method), settings=settings_of(LEARNING, method))
    # A prompt hardly moves the actions of a backbone that was never trained; weights do.
    share = 0.8 if method.changes_weights else 0.997
    assert few_shot_loss(method, inputs, after=True) < share * few_shot_loss(method, inputs, after=False)


def test_soft_prompts_begin_as_embedded_prompts_or_random(make_inputs: MakeInputs) -> None:
    method = METHODS["soft-prompt"]
    for initial in ("few-shot", "normal"):
        settings = SoftPromptConfig(steps=1, batch_steps=6, held_out_episodes=0, learning_rate=1e-9, initial=initial)
        inputs = dataclasses.replace(make_inputs(method), settings=settings)
        tokens = method.adapt(inputs).policy.prompts
        assert isinstance(tokens, Tensor)
        embedded = inputs.backbone.prompt_tokens(inputs.few_shot_prompts())
        assert torch.allclose(tokens, embedded, atol=1e-6) == (initial == "few-shot")
        if initial == "normal":
            assert tokens.std().item() == pytest.approx(0.02, rel=0.1)


def test_weights_are_played_behind_the_few_shot_prompts_in_turn(make_inputs: MakeInputs) -> None:
    method = METHODS["lora"]
    inputs = make_inputs(method)
    prompts = method.adapt(inputs).policy.prompts
    assert isinstance(prompts, Segments)
    assert torch.equal(prompts.states, inputs.few_shot.pool.prompts.states[torch.arange(NUM_PROMPTS) % FEW_SHOT])


def test_online_search_counts_every_episode(make_inputs: MakeInputs) -> None:
    method, settings = METHODS["prompt-tuning-dt-online"], CONFIG.prompt_tuning_dt_online
    inputs = make_inputs(method, num_prompts=5)
    for searches in (2, 0):
        config = dataclasses.replace(settings, searches=searches)
        adaptation = method.adapt(dataclasses.replace(inputs, settings=config))
        searched = searches or 5
        episodes = settings.steps * settings.perturbations * settings.episodes * searched
        assert adaptation.cost.environment_episodes == episodes
        assert adaptation.cost.tunable_parameters == COUNTS[method.name]
        prompts = adaptation.policy.prompts
        assert isinstance(prompts, Segments)
        assert torch.equal(prompts.states, prompts.states[torch.arange(5) % searched])


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("slots", [1, 5])
def test_a_bandit_ends_with_segments_of_the_few_shot_episodes(
    features: str, slots: int, make_inputs: MakeInputs
) -> None:
    method = METHODS["prompt-bandit-thompson"]
    settings = PromptBanditConfig(episodes=3, at_a_time=2, fit_steps=3, slots=slots, features=features)
    inputs = dataclasses.replace(make_inputs(method), settings=settings)
    adaptation = method.adapt(inputs)
    prompts = adaptation.policy.prompts
    assert isinstance(prompts, Segments)
    steps = K // slots
    windows = inputs.few_shot.windows.states.unfold(1, steps, 1).movedim(-1, 2).flatten(0, 1)
    for segment in prompts.states[0].split(steps):
        assert (windows == segment).all(dim=(1, 2)).any()
    assert (prompts.states == prompts.states[0]).all()
    assert adaptation.cost.environment_episodes == 3
    assert adaptation.cost.gradient_steps == 2
    num_features = {"raw": RAW // slots, "backbone": D}[features]
    assert adaptation.cost.tunable_parameters == num_parameters(slots, num_features)


def test_playing_gives_each_prompt_its_own_return(make_inputs: MakeInputs) -> None:
    inputs = make_inputs(METHODS["prompt-tuning-dt-online"])
    # Longer episodes amplify how products of other sizes are rounded.
    inputs = dataclasses.replace(inputs, family=dataclasses.replace(FAMILY, horizon=20))
    prompts = inputs.few_shot_prompts()
    simulator = TargetSimulator(inputs, "a method")
    returns = simulator.play(prompts, [0, 0, 0, 1, 1, 1])
    again = TargetSimulator(inputs, "a method").play(prompts.select(slice(1, 3)), [0, 0])
    np.testing.assert_allclose(again, returns[1:3], rtol=0.03)
    assert len(set(returns.tolist())) == 6
    assert simulator.episodes_played == 6


def test_an_episode_whose_state_is_lost_has_no_return(make_inputs: MakeInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(METHODS["prompt-tuning-dt-online"])
    roll_out = EpisodeStepper.roll_out

    def losing(self: EpisodeStepper, *args: object, **options: object) -> Rollouts:
        return dataclasses.replace(roll_out(self, *args, **options, horizon=3), diverged_N=np.array([False, True]))

    monkeypatch.setattr(EpisodeStepper, "roll_out", losing)
    returns = TargetSimulator(inputs, "a method").play(inputs.few_shot_prompts().select(slice(2)), [0, 1])
    assert np.isnan(returns).tolist() == [False, True]
    assert inputs.task == TASK
