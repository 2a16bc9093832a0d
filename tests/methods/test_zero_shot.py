"""Zero-shot Prompt Diffuser: where y comes from, and that nothing of the target task is read for it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import PromptPool, Segments
from promptdiffuser.methods import METHODS
from promptdiffuser.methods.adaptation import AdaptationInputs, Method
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.training.model_folders import load_diffuser
from tests.methods.conftest import FAMILY, NUM_PROMPTS, TARGET_RETURN, Models
from tests.rollout.synthetic_policies import TINY

MakeInputs = Callable[..., AdaptationInputs]
ZERO_SHOT = {name: method for name, method in METHODS.items() if method.is_zero_shot}


@dataclass(frozen=True)
class TrainingTasksAlone(Dataset):
    """Raises when an episode of a target task is read."""

    def read(self, tasks: Collection[int], quality: Quality = "expert") -> Episodes:
        assert set(tasks) <= set(self.family.train_tasks), f"tasks {sorted(tasks)} were read"
        return super().read(tasks, quality)

    def few_shot(self, tasks: Collection[int], config: object) -> Episodes:
        raise AssertionError(f"the few-shot set of {sorted(tasks)} was read")


def prompts_of(method: Method, inputs: AdaptationInputs) -> Segments:
    prompts = method.adapt(inputs).policy.prompts
    assert isinstance(prompts, Segments)
    return prompts


def is_among(prompts: Segments, pool: PromptPool) -> bool:
    """Return whether every prompt's y is that of a prompt of the pool."""
    return all(
        bool(((pool.prompts.returns_to_go == returns) & (pool.prompts.timesteps == times)).all(dim=1).any())
        for returns, times in zip(prompts.returns_to_go, prompts.timesteps, strict=True)
    )


def test_the_four_readings_are_there() -> None:
    assert list(ZERO_SHOT) == [f"prompt-diffuser-z{n}" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("method", ZERO_SHOT.values(), ids=ZERO_SHOT)
def test_nothing_of_the_target_task_is_read(method: Method, make_inputs: MakeInputs, small_dataset: Dataset) -> None:
    guarded = TrainingTasksAlone(small_dataset.storage, small_dataset.manifest)
    inputs = make_inputs(method, dataset=guarded)
    assert len(prompts_of(method, inputs)) == NUM_PROMPTS
    for read in (lambda: inputs.few_shot, lambda: inputs.few_shot_of("expert"), inputs.whole_task):
        with pytest.raises(AssertionError, match="read"):
            read()


@pytest.mark.parametrize("name", ["prompt-diffuser-z1", "prompt-diffuser-z4"])
def test_y_of_training_prompts(name: str, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(METHODS[name], num_prompts=40)
    prompts = prompts_of(METHODS[name], inputs)
    assert is_among(prompts, inputs.training().pool)
    assert len(prompts.returns_to_go.unique(dim=0)) > 20


def test_y_of_the_best_training_return(make_inputs: MakeInputs) -> None:
    method = METHODS["prompt-diffuser-z2"]
    inputs = make_inputs(method)
    prompts, training = prompts_of(method, inputs), inputs.training().pool.prompts
    assert prompts.timesteps.unique(dim=0).tolist() == [[194, 195, 196, 197, 198]]
    for step in range(TINY.prompt_length):
        assert set(prompts.returns_to_go[:, step].tolist()) == {max(training.returns_to_go[:, step].tolist())}


def test_y_of_the_target_return(make_inputs: MakeInputs) -> None:
    method = METHODS["prompt-diffuser-z3"]
    prompts = prompts_of(method, make_inputs(method))
    expected = torch.full((NUM_PROMPTS, TINY.prompt_length), TARGET_RETURN / FAMILY.return_scale)
    assert torch.equal(prompts.returns_to_go, expected)
    assert prompts.timesteps.tolist() == [[0, 1, 2, 3, 4]] * NUM_PROMPTS


def test_without_a_condition_y_does_not_matter(make_inputs: MakeInputs, models: Models) -> None:
    """The same prompts as the same diffuser makes where it is shown no condition."""
    method = METHODS["prompt-diffuser-z4"]
    inputs = make_inputs(method)
    generated = prompts_of(method, inputs)
    other = replace(inputs.training().pool.prompts, returns_to_go=inputs.training().pool.prompts.returns_to_go + 3)
    pool = replace(inputs.training().pool, prompts=other)
    shifted = prompts_of(method, replace(inputs, training=lambda: replace(inputs.training(), pool=pool)))
    assert torch.equal(generated.states, shifted.states)
    assert not torch.equal(generated.returns_to_go, shifted.returns_to_go)
    # It is not that this diffuser ignores its condition.
    diffuser = load_diffuser(models.diffusers["condition-dropout"], FAMILY, torch.device("cpu"))
    noise_KBX = diffuser.draw_noise(NUM_PROMPTS, 0)
    one, two = (diffuser.generate(y, noise_KBX, noise_KBX).states for y in (generated, shifted))
    assert not torch.equal(one, two)


def test_a_diffuser_trained_without_dropout_has_no_null_condition(make_inputs: MakeInputs, models: Models) -> None:
    method = METHODS["prompt-diffuser-z4"]
    inputs = replace(make_inputs(method), diffuser_folder=models.diffusers["published"])
    with pytest.raises(ValueError, match=r"needs a denoiser\.condition_dropout above 0"):
        method.adapt(inputs)
