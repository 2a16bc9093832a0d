"""What every method of the registry must do, and what each promises of itself."""

import copy
import dataclasses
import re
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import PromptPool, Segments
from promptdiffuser.errors import UserError
from promptdiffuser.experiment import Experiment
from promptdiffuser.methods import METHODS, get_method
from promptdiffuser.methods.adaptation import AdaptationInputs, Cost, Method
from promptdiffuser.methods.backbones import BACKBONES
from promptdiffuser.methods.cells import AdaptationCell, adapt
from promptdiffuser.methods.config import settings_of
from promptdiffuser.methods.diffusers import DIFFUSERS
from promptdiffuser.methods.folders import Origin, load_adaptation, read_origin, save_adaptation
from promptdiffuser.models.backbone import Prompt, PromptDT
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.training.trainings import DiffuserTraining
from tests.methods.conftest import (
    CONFIG,
    FAMILY,
    FEW_SHOT,
    NUM_PROMPTS,
    OTHER_TASK,
    SETTINGS,
    TARGET_RETURN,
    TASK,
    Models,
)
from tests.rollout.synthetic_policies import TINY, tiny_backbone

MakeInputs = Callable[..., AdaptationInputs]
GENERATING = {name: method for name, method in METHODS.items() if method.diffuser}
PROMPT_TOKENS = 3 * TINY.prompt_length

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
every_generating_method = pytest.mark.parametrize("method", GENERATING.values(), ids=GENERATING)


def tensors(prompts: Prompt) -> dict[str, Tensor]:
    if isinstance(prompts, Tensor):
        return {"tokens": prompts}
    return {field.name: getattr(prompts, field.name) for field in dataclasses.fields(Segments)}


def equal(left: Prompt, right: Prompt) -> bool:
    ours, others = tensors(left), tensors(right)
    return ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


def equal_weights(left: PromptDT, right: PromptDT) -> bool:
    ours, others = left.state_dict(), right.state_dict()
    return ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


def rows_in(prompts: Segments, pool: PromptPool) -> list[int]:
    """Return the episode of a pool that each prompt equals; -1 for none."""
    return [
        next((n for n in range(len(pool.prompts)) if equal(pool.prompts.select(slice(n, n + 1)), one)), -1)
        for one in (prompts.select(slice(row, row + 1)) for row in range(len(prompts)))
    ]


def trajectories(method: Method, inputs: AdaptationInputs) -> Segments:
    prompts = method.adapt(inputs).policy.prompts
    assert isinstance(prompts, Segments)
    return prompts


def test_registry_knows_each_method_by_its_own_name() -> None:
    assert {name: method.name for name, method in METHODS.items()} == {name: name for name in METHODS}
    assert all(get_method(name) is method for name, method in METHODS.items())
    for method in METHODS.values():
        assert method.backbone in BACKBONES
        assert method.diffuser is None or method.diffuser in DIFFUSERS
        assert method.diffuser is not None or not method.few_shot_updates
        assert not (method.is_zero_shot and (method.few_shot_updates or method.qualities or method.reads_whole_task))
        assert method.summary
        assert re.fullmatch(r"#[0-9a-f]{6}", method.colour)
    assert len({method.label for method in METHODS.values()}) == len(METHODS)
    assert len({method.colour for method in METHODS.values()}) == len(METHODS)


def test_a_method_is_given_its_own_settings_and_no_other(make_inputs: MakeInputs) -> None:
    experiment = Experiment(name="some")
    sections = {method.section: method.settings for method in METHODS.values() if method.settings is not None}
    assert [(field.name, field.type) for field in dataclasses.fields(experiment.adaptation)] == list(sections.items())
    for method in METHODS.values():
        own = settings_of(experiment.adaptation, method)
        if method.settings is None:
            assert own is None
            assert make_inputs(method).settings is None
        else:
            assert own == method.settings()
            assert make_inputs(method).settings is getattr(CONFIG, method.section)


def test_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown method 'prompt-guesser'") as refusal:
        get_method("prompt-guesser")
    assert all(name in str(refusal.value) for name in METHODS)


@dataclasses.dataclass(frozen=True)
class GuardedDataset(Dataset):
    """Raises when more of a target task is read than its few-shot set."""

    def read(self, tasks: Collection[int], quality: Quality = "expert") -> Episodes:
        if targets := set(tasks) - set(self.family.train_tasks):
            raise AssertionError(f"all of target task(s) {sorted(targets)} was read")
        return super().read(tasks, quality)

    def few_shot(self, tasks: Collection[int], config: object) -> Episodes:
        return Dataset(self.storage, self.manifest).few_shot(tasks, config)


@every_method
def test_a_method_keeps_its_promises(
    method: Method, make_inputs: MakeInputs, small_dataset: Dataset, tmp_path: Path
) -> None:
    """Shapes, repeatability, what it reads, what it leaves alone, what it says it tuned: one adaptation serves all."""
    dataset = (
        small_dataset if method.reads_whole_task else GuardedDataset(small_dataset.storage, small_dataset.manifest)
    )
    inputs = make_inputs(method, dataset=dataset)
    before = copy.deepcopy(inputs.backbone)
    pools = [inputs.few_shot.pool, inputs.training().pool]
    data_before = [tensor.clone() for pool in pools for tensor in tensors(pool.prompts).values()]
    adaptation = adapt(method, inputs)
    policy, cost = adaptation.policy, adaptation.cost

    for name, value in tensors(policy.prompts).items():
        assert len(value) == NUM_PROMPTS, name
        assert torch.isfinite(value).all()
        assert not value.requires_grad
    if isinstance(policy.prompts, Segments):
        shape = (NUM_PROMPTS, TINY.prompt_length)
        assert policy.prompts.states.shape == (*shape, FAMILY.observation_dim)
        assert policy.prompts.actions.shape == (*shape, FAMILY.action_dim)
        for name in ("returns_to_go", "rewards", "timesteps", "valid"):
            assert getattr(policy.prompts, name).shape == shape, name
        assert policy.prompts.timesteps.dtype == torch.int64
        assert policy.prompts.valid.all()
    else:
        assert policy.prompts.shape == (NUM_PROMPTS, PROMPT_TOKENS, TINY.width)

    # The frozen backbone stays as it was, and is the policy's unless the method says otherwise.
    assert equal_weights(inputs.backbone, before)
    assert (policy.backbone is not inputs.backbone) == method.changes_weights
    assert not any(parameter.requires_grad for parameter in policy.backbone.parameters())
    assert not policy.backbone.training

    # Data stay as they were, also where a prompt is one of theirs.
    for value in tensors(policy.prompts).values():
        value.mul_(0) if value.dtype.is_floating_point else None
    data_after = [tensor for pool in pools for tensor in tensors(pool.prompts).values()]
    assert all(torch.equal(old, new) for old, new in zip(data_before, data_after, strict=True))

    assert cost.seconds > 0
    assert cost.memory_gib > 0
    assert (cost.environment_episodes > 0) == method.uses_simulator
    assert (cost.tunable_parameters > 0) or not (method.changes_weights or method.few_shot_updates)


@every_method
def test_equal_inputs_give_equal_policies_whatever_the_global_generators_hold(
    method: Method, make_inputs: MakeInputs
) -> None:
    first = method.adapt(make_inputs(method))
    torch.manual_seed(99)
    torch.rand(7)
    again = method.adapt(make_inputs(method))
    assert equal(first.policy.prompts, again.policy.prompts)
    assert equal_weights(first.policy.backbone, again.policy.backbone)
    assert first.cost == again.cost


@every_method
def test_another_task_gives_another_policy(method: Method, make_inputs: MakeInputs) -> None:
    first, other = (method.adapt(make_inputs(method, task=task)).policy for task in (TASK, OTHER_TASK))
    assert not equal(first.prompts, other.prompts) or not equal_weights(first.backbone, other.backbone)


@every_method
def test_an_adaptation_is_read_as_it_was_written(
    method: Method, make_inputs: MakeInputs, models: Models, tmp_path: Path
) -> None:
    inputs = make_inputs(method)
    made = adapt(method, inputs)
    folder = models.backbones[method.backbone]
    origin = Origin.of(tmp_path / "policy", FAMILY.name, TASK, method.name, TARGET_RETURN, folder)
    save_adaptation(tmp_path / "policy", made, inputs.backbone, origin)
    assert read_origin(tmp_path / "policy") == origin
    assert origin.backbone_folder(tmp_path / "policy") == folder.resolve()
    read = load_adaptation(tmp_path / "policy", inputs.backbone, method)
    assert equal(read.policy.prompts, made.policy.prompts)
    assert equal_weights(read.policy.backbone, made.policy.backbone)
    assert (read.policy.backbone is inputs.backbone) == (not method.changes_weights)
    assert read.cost == made.cost


def test_a_cell_writes_what_its_method_makes(
    make_inputs: MakeInputs, small_dataset: Dataset, models: Models, tmp_path: Path
) -> None:
    method = METHODS["prompt-diffuser-context"]
    inputs = make_inputs(method)
    cell = AdaptationCell(
        method.name,
        TASK,
        tmp_path / "cell",
        small_dataset,
        models.backbones["prompt-dt"],
        SETTINGS,
        models.diffusers["context"],
        inputs.few_shot_training,
    )
    assert not cell.is_done
    histories: list[list[dict[str, float]]] = []
    cell.run(torch.device("cpu"), histories.append)
    assert cell.is_done
    assert [entry["step"] for entry in histories[-1]] == [2]
    read = load_adaptation(cell.result, tiny_backbone(FAMILY), method)
    assert equal(read.policy.prompts, method.adapt(inputs).policy.prompts)
    assert read.cost.gradient_steps == 2


def test_prompt_dt_uses_each_few_shot_prompt_equally(make_inputs: MakeInputs) -> None:
    inputs = make_inputs(METHODS["prompt-dt"])
    rows = rows_in(trajectories(METHODS["prompt-dt"], inputs), inputs.few_shot.pool)
    assert np.bincount(rows).tolist() == [NUM_PROMPTS // FEW_SHOT] * FEW_SHOT


def test_prompt_dt_with_fewer_prompts_than_episodes_repeats_none(make_inputs: MakeInputs) -> None:
    inputs = make_inputs(METHODS["prompt-dt"], num_prompts=2)
    rows = rows_in(trajectories(METHODS["prompt-dt"], inputs), inputs.few_shot.pool)
    assert -1 not in rows
    assert len(set(rows)) == 2


def test_other_task_prompts_come_from_other_tasks(make_inputs: MakeInputs) -> None:
    method = METHODS["other-task-prompt"]
    inputs = make_inputs(method, num_prompts=60)
    training, prompts = inputs.training().pool, trajectories(METHODS["other-task-prompt"], inputs)
    tasks = training.index.tasks[rows_in(prompts, training)]
    assert len(set(tasks.tolist())) > 20
    assert TASK not in tasks
    assert set(rows_in(prompts, inputs.few_shot.pool)) == {-1}


@every_generating_method
def test_generated_prompts_lie_within_the_bounds_of_the_data(method: Method, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(method, num_prompts=60)
    prompts, slack = trajectories(method, inputs), 1e-5
    assert prompts.actions.abs().max() <= 1 + slack
    assert (prompts.states >= inputs.normaliser.state_low - slack).all()
    assert (prompts.states <= inputs.normaliser.state_high + slack).all()
    assert (prompts.rewards >= inputs.normaliser.reward_low - slack).all()
    assert (prompts.rewards <= inputs.normaliser.reward_high + slack).all()
    # The untrained denoiser runs into the bounds, so the bounds are what holds it.
    assert prompts.actions.abs().max() > 0.99


@every_generating_method
def test_every_prompt_is_generated_from_noise_of_its_own(method: Method, make_inputs: MakeInputs) -> None:
    states = trajectories(method, make_inputs(method)).states
    same_condition = states[::FEW_SHOT]
    assert all(not torch.equal(same_condition[0], other) for other in same_condition[1:])


@pytest.mark.parametrize("name", ["prompt-diffuser", "prompt-diffuser-context", "prompt-diffuser-multi-task"])
def test_generated_prompts_keep_the_condition_of_the_few_shot_episodes_in_turn(
    name: str, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(METHODS[name])
    prompts, of_task = trajectories(METHODS[name], inputs), inputs.few_shot.pool.prompts
    turn = torch.arange(NUM_PROMPTS) % FEW_SHOT
    assert torch.equal(prompts.returns_to_go, of_task.returns_to_go[turn])
    assert torch.equal(prompts.timesteps, of_task.timesteps[turn])
    assert prompts.timesteps[0].tolist() == [194, 195, 196, 197, 198]


@every_generating_method
def test_only_diffusers_that_say_so_see_the_task_context(method: Method, make_inputs: MakeInputs) -> None:
    assert method.diffuser is not None
    inputs = dataclasses.replace(make_inputs(method), few_shot_training=None)
    pool = inputs.few_shot.pool
    moved = dataclasses.replace(pool, transitions=pool.transitions + 1.0)
    other = dataclasses.replace(inputs, read_few_shot=lambda: dataclasses.replace(inputs.few_shot, pool=moved))
    unchanged = equal(method.adapt(inputs).policy.prompts, method.adapt(other).policy.prompts)
    assert unchanged != DIFFUSERS[method.diffuser].sees_task_context


@every_generating_method
def test_generating_without_a_diffuser_is_an_error(method: Method, make_inputs: MakeInputs) -> None:
    inputs = dataclasses.replace(make_inputs(method), diffuser_folder=None, few_shot_training=None)
    with pytest.raises(ValueError, match="needs the folder of a trained diffuser"):
        method.adapt(inputs)


def test_few_shot_updates_change_the_diffuser_and_count_its_parameters(make_inputs: MakeInputs) -> None:
    tuned, untuned = METHODS["prompt-diffuser-context"], METHODS["prompt-diffuser-multi-task"]
    after, before = tuned.adapt(make_inputs(tuned)), untuned.adapt(make_inputs(untuned))
    assert not equal(after.policy.prompts, before.policy.prompts)
    training = make_inputs(tuned).few_shot_training
    assert isinstance(training, DiffuserTraining)
    inputs = make_inputs(tuned)
    task = training.learning_task(inputs.few_shot.windows, inputs.few_shot.pool, inputs.device)
    assert after.cost.tunable_parameters == sum(parameter.numel() for parameter in task.model.parameters())
    assert after.cost.gradient_steps == training.optimisation.steps
    assert before.cost == Cost()
