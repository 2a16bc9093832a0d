"""What every method of the registry must do, and what each promises of its prompts."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import PromptPool, Segments
from promptdiffuser.diffusion.process import DiffusionConfig
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.errors import UserError
from promptdiffuser.learning.diffuser import Diffuser
from promptdiffuser.learning.model_folders import build_diffuser
from promptdiffuser.methods import METHODS, get_method
from promptdiffuser.methods.adaptation import AdaptationInputs, Method
from promptdiffuser.methods.inputs import PoolBuilder, prompts_by_task
from promptdiffuser.models.denoiser import DenoiserConfig
from promptdiffuser.tasks import FAMILIES
from tests.evaluation.synthetic_policies import TINY, tiny_pool

FAMILY = FAMILIES["cheetah-vel"]
TASK = 7
NUM_PROMPTS, FEW_SHOT = 12, 4
WITHOUT_RANDOMNESS = {"prompt-dt"}
DIFFUSING = [name for name, method in METHODS.items() if method.trains_diffuser]

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
every_diffusing_method = pytest.mark.parametrize("method", [METHODS[name] for name in DIFFUSING], ids=DIFFUSING)

TRAINING, NORMALISER = tiny_pool(FAMILY, [0, 0, 1, 1, 3, 3])
OF_TASK = tiny_pool(FAMILY, [TASK] * FEW_SHOT, seed=1)[0]


def untrained_diffuser(method: Method) -> Diffuser:
    space = PromptSpace.fit(NORMALISER, TRAINING.prompts, FAMILY.horizon)
    config = DenoiserConfig(hidden=16, depth=1, context_features=4, context_hidden=8)
    return build_diffuser(config, DiffusionConfig(), space, FAMILY, method.sees_task_context, "test")


def inputs_of(method: Method, **changes: Any) -> AdaptationInputs:
    inputs = AdaptationInputs(
        task=TASK,
        few_shot=OF_TASK,
        training_pool=lambda: TRAINING,
        diffuser=untrained_diffuser(method) if method.trains_diffuser else None,
        num_prompts=NUM_PROMPTS,
        seed=0,
    )
    return dataclasses.replace(inputs, **changes)


def equal(left: Segments, right: Segments) -> bool:
    return all(torch.equal(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(Segments))


def rows_in(prompts: Segments, pool: PromptPool) -> list[int]:
    """Return the episode of a pool that each prompt equals; -1 for none."""
    return [
        next(
            (n for n in range(len(pool.prompts)) if equal(pool.prompts.select(slice(n, n + 1)), one)),
            -1,
        )
        for one in (prompts.select(slice(row, row + 1)) for row in range(len(prompts)))
    ]


def test_registry_knows_each_method_by_its_own_name() -> None:
    assert {name: method.name for name, method in METHODS.items()} == {name: name for name in METHODS}
    assert all(get_method(name) is method for name, method in METHODS.items())
    assert not any(method.sees_task_context and not method.trains_diffuser for method in METHODS.values())


def test_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown method 'prompt-guesser'") as refusal:
        get_method("prompt-guesser")
    assert all(name in str(refusal.value) for name in METHODS)


@every_method
@pytest.mark.parametrize("num_prompts", [1, NUM_PROMPTS])
def test_prompts_have_the_asked_number_and_the_backbones_shapes(method: Method, num_prompts: int) -> None:
    prompts = method.make_prompts(inputs_of(method, num_prompts=num_prompts))
    length = TINY.prompt_length
    assert len(prompts) == num_prompts
    assert prompts.states.shape == (num_prompts, length, FAMILY.observation_dim)
    assert prompts.actions.shape == (num_prompts, length, FAMILY.action_dim)
    for name in ("returns_to_go", "rewards", "timesteps", "valid"):
        assert getattr(prompts, name).shape == (num_prompts, length), name
    assert prompts.timesteps.dtype == torch.int64
    assert prompts.valid.all()
    for field in dataclasses.fields(Segments):
        value = getattr(prompts, field.name)
        assert torch.isfinite(value).all()
        assert not value.requires_grad


@every_method
def test_equal_inputs_give_equal_prompts(method: Method) -> None:
    inputs = inputs_of(method)
    first = method.make_prompts(inputs)
    torch.manual_seed(99)  # global generators must not matter
    torch.rand(7)
    np.random.default_rng()
    assert equal(first, method.make_prompts(inputs))


@every_method
@pytest.mark.parametrize("change", [{"seed": 1}, {"task": 15}], ids=["seed", "task"])
def test_seed_and_task_address_whatever_is_random(method: Method, change: dict[str, int]) -> None:
    changed = equal(method.make_prompts(inputs_of(method)), method.make_prompts(inputs_of(method, **change)))
    assert changed == (method.name in WITHOUT_RANDOMNESS)


@every_method
def test_few_shot_or_training_pool_stays_as_it_is(method: Method) -> None:
    before = [
        getattr(pool.prompts, f.name).clone() for pool in (OF_TASK, TRAINING) for f in dataclasses.fields(Segments)
    ]
    method.make_prompts(inputs_of(method)).states.add_(1.0)
    after = [getattr(pool.prompts, f.name) for pool in (OF_TASK, TRAINING) for f in dataclasses.fields(Segments)]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_prompt_dt_uses_each_few_shot_prompt_equally() -> None:
    rows = rows_in(METHODS["prompt-dt"].make_prompts(inputs_of(METHODS["prompt-dt"])), OF_TASK)
    assert np.bincount(rows).tolist() == [NUM_PROMPTS // FEW_SHOT] * FEW_SHOT


def test_prompt_dt_with_fewer_prompts_than_episodes_repeats_none() -> None:
    rows = rows_in(METHODS["prompt-dt"].make_prompts(inputs_of(METHODS["prompt-dt"], num_prompts=3)), OF_TASK)
    assert -1 not in rows
    assert len(set(rows)) == 3


def test_other_task_prompts_come_from_other_tasks() -> None:
    method = METHODS["other-task-prompt"]
    prompts = method.make_prompts(inputs_of(method, num_prompts=60))
    rows = rows_in(prompts, TRAINING)
    assert set(rows) == set(range(len(TRAINING.prompts))), "all training episodes are drawn from, and nothing else"
    assert TASK not in TRAINING.index.tasks[rows]
    assert set(rows_in(prompts, OF_TASK)) == {-1}


@every_diffusing_method
def test_generated_prompts_lie_within_the_bounds_of_the_data(method: Method) -> None:
    prompts = method.make_prompts(inputs_of(method, num_prompts=100))
    slack = 1e-5
    assert prompts.actions.abs().max() <= 1 + slack
    assert (prompts.states >= NORMALISER.state_low - slack).all()
    assert (prompts.states <= NORMALISER.state_high + slack).all()
    assert (prompts.rewards >= NORMALISER.reward_low - slack).all()
    assert (prompts.rewards <= NORMALISER.reward_high + slack).all()
    # The untrained denoiser runs into the bounds, so the bounds are what holds it.
    assert prompts.actions.abs().max() > 0.99


@every_diffusing_method
def test_generated_prompts_keep_the_condition_of_the_few_shot_episodes_in_turn(method: Method) -> None:
    prompts = method.make_prompts(inputs_of(method))
    turn = torch.arange(NUM_PROMPTS) % FEW_SHOT
    assert torch.equal(prompts.returns_to_go, OF_TASK.prompts.returns_to_go[turn])
    assert torch.equal(prompts.timesteps, OF_TASK.prompts.timesteps[turn])
    assert prompts.timesteps[0].tolist() == [194, 195, 196, 197, 198]


@every_diffusing_method
def test_every_prompt_is_generated_from_noise_of_its_own(method: Method) -> None:
    states = method.make_prompts(inputs_of(method)).states
    same_condition = states[::FEW_SHOT]
    assert all(not torch.equal(same_condition[0], other) for other in same_condition[1:])


@every_diffusing_method
def test_only_methods_that_say_so_see_the_task_context(method: Method) -> None:
    inputs = inputs_of(method)
    moved = dataclasses.replace(OF_TASK, transitions=OF_TASK.transitions + 1.0)
    unchanged = equal(method.make_prompts(inputs), method.make_prompts(dataclasses.replace(inputs, few_shot=moved)))
    assert unchanged != method.sees_task_context


@every_diffusing_method
def test_diffusing_method_without_its_diffuser_is_an_error(method: Method) -> None:
    with pytest.raises(ValueError, match="needs a trained diffuser"):
        method.make_prompts(inputs_of(method, diffuser=None))


@every_method
def test_methods_are_given_the_few_shot_set_and_the_training_tasks_alone(
    method: Method, small_dataset: Dataset
) -> None:
    seen: list[AdaptationInputs] = []

    def make_prompts(inputs: AdaptationInputs) -> Segments:
        seen.append(inputs)
        return method.make_prompts(inputs)

    asked: list[int] = []

    def diffuser_of(task: int) -> Diffuser:
        asked.append(task)
        return untrained_diffuser(method)

    normaliser = Normaliser.fit(small_dataset.parts(FAMILY.train_tasks), FAMILY.return_scale)
    builder = PoolBuilder(small_dataset, normaliser, TINY.prompt_length, context_transitions=4)
    watched = dataclasses.replace(method, make_prompts=make_prompts)
    prompts = prompts_by_task(watched, [2, 26], builder, FewShotConfig(episodes=2), 5, 0, diffuser_of)

    assert {task: len(made) for task, made in prompts.items()} == {2: 5, 26: 5}
    assert asked == ([2, 26] if method.trains_diffuser else [])
    for inputs, task in zip(seen, [2, 26], strict=True):
        first_two = small_dataset.read([task]).select(slice(2))
        states = normaliser.states(torch.from_numpy(first_two.observations[:, 194:199]))
        assert inputs.task == task
        torch.testing.assert_close(inputs.few_shot.prompts.states, states)
        assert inputs.few_shot.index.tasks.tolist() == [task] * 2
        assert set(inputs.training_pool().index.tasks.tolist()) == set(FAMILY.train_tasks)
