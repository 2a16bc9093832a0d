"""A look inside a diffuser whose prompts are known: copies of real ones, a line of returns, or noise."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import PromptPool, Segments
from promptdiffuser.diffusion.diffuser import Diffuser
from promptdiffuser.diffusion.process import DiffusionConfig
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.evaluation import prompt_measures as measure
from promptdiffuser.evaluation.diagnostics import NUM_PROMPTS, Inspector, Measures, RealPrompts, mean_of_tasks
from promptdiffuser.models.denoiser import DenoiserConfig
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.training.model_folders import build_diffuser

FAMILY = FAMILIES["cheetah-vel"]
TASKS = (4, 36)
LENGTH = 5


@pytest.fixture(scope="module")
def real(small_dataset: Dataset) -> RealPrompts:
    """Return prompts with two few-shot episodes and one more of each of two tasks, far from each other."""
    normaliser = Normaliser.fit(small_dataset.parts(FAMILY.train_tasks), FAMILY.return_scale)
    return RealPrompts.read(small_dataset, "expert", TASKS, FewShotConfig(episodes=2), LENGTH, 4, normaliser)


class Known(Diffuser):
    """Stands in for a diffuser: asks a function for its prompts."""

    def __init__(self, space: PromptSpace, make: object) -> None:
        self.space, self.make = space, make

    def prompts_for(self, few_shot: PromptPool, num_prompts: int, *address: int | str) -> Segments:
        return self.make(few_shot.prompts_at(np.arange(num_prompts) % len(few_shot.prompts)))


def look_inside(diffusers: Mapping[int, Diffuser], real: RealPrompts, seed: int = 0) -> dict[int, Measures]:
    inspector = Inspector(FAMILY, real)
    return {task: inspector.inspect(task, diffuser, seed) for task, diffuser in diffusers.items()}


def space_of(real: RealPrompts) -> PromptSpace:
    return PromptSpace.fit(real.normaliser, real.training.prompts, FAMILY.horizon)


def test_real_prompts_are_read_by_what_the_diffuser_sees(real: RealPrompts, small_dataset: Dataset) -> None:
    assert set(real.training.index.tasks.tolist()) == set(FAMILY.train_tasks)
    for task in TASKS:
        episodes = small_dataset.read([task])
        states = real.normaliser.states(torch.from_numpy(episodes.observations[:, 194:199]))
        torch.testing.assert_close(real.few_shot[task].prompts.states, states[:2])
        torch.testing.assert_close(real.unseen[task].states, states[2:])
        assert len(real.of(task)) == 3
        assert real.few_shot[task].transitions.shape[1] == 4
    of_others = real.of_training_tasks_but([0, *TASKS])
    assert set(of_others.index.tasks.tolist()) == set(FAMILY.train_tasks) - {0}
    assert torch.equal(of_others.prompts.states, real.training.prompts.states[real.training.index.tasks != 0])


def test_copies_of_few_shot_prompts_measure_as_what_they_are(real: RealPrompts) -> None:
    diffuser = Known(space_of(real), lambda prompts: prompts)
    found = look_inside(dict.fromkeys(TASKS, diffuser), real)
    spread_X = measure.spread(real.training.prompts)
    for task, measures in found.items():
        assert measures["target_nearest"] == 0
        few_shot = real.few_shot[task].prompts
        apart = measure.diversity(few_shot, spread_X)
        assert measures["target_mean"] == pytest.approx(apart / 2)
        # Half of the pairs are of one prompt with itself.
        pairs = NUM_PROMPTS / 2 / (NUM_PROMPTS - 1)
        assert measures["diversity"] == pytest.approx(apart * pairs / measure.diversity(real.of(task), spread_X))
        assert measures["task_accuracy"] == measures["judged_by_simulator"] == 1
        assert measures["reward_error"] < 1e-5 < measures["reward_deviation"]
        assert measures["dynamics_error"] < 1e-4 < measures["step_change"]
        assert measures["real_reward_error"] < 1e-5
        assert measures["real_target_nearest"] > 0.1
        assert measures["lost_steps"] == 0
        assert measures["task_chance"] == 1 / 32
        # They are the same whatever is asked for.
        assert measures["return_slope"] == measures["true_return_correlation"] == 0
        # Five of the six rewards that a return-to-go at the first step of a prompt adds up.
        assert measures["real_return_slope"] == pytest.approx(5 / 6, abs=0.06)


def test_rewards_that_keep_to_the_return_have_the_slope_of_their_sum(real: RealPrompts) -> None:
    normaliser = real.normaliser

    def obedient(prompts: Segments) -> Segments:
        rewards = (prompts.returns_to_go[:, :1] * normaliser.return_scale / 6).expand(-1, LENGTH)
        return replace(prompts, rewards=normaliser.rewards(rewards))

    found = look_inside({4: Known(space_of(real), obedient)}, real)[4]
    assert found["return_slope"] == pytest.approx(5 / 6, rel=1e-4)
    assert found["return_correlation"] == pytest.approx(1)
    assert found["true_return_slope"] == 0
    assert found["reward_error"] > 0.01


def test_prompts_of_another_task_are_found_out(real: RealPrompts) -> None:
    other = real.few_shot[36].prompts.select(slice(0, 1))
    swapped = Known(space_of(real), lambda prompts: other.select(torch.zeros(len(prompts), dtype=torch.int64)))
    found = look_inside({4: swapped, 36: swapped}, real)
    assert (found[4]["task_accuracy"], found[36]["task_accuracy"]) == (0, 1)
    assert found[4]["target_nearest"] > 2 * found[4]["real_target_nearest"]
    assert found[4]["diversity"] == 0
    # 0.375 against 2.775 m/s.
    assert found[4]["reward_error"] > 1.5 > found[36]["reward_error"]


def test_a_diffuser_is_measured_the_same_again_and_by_its_noise(real: RealPrompts) -> None:
    diffuser = build_diffuser(DenoiserConfig(hidden=16), DiffusionConfig(), space_of(real), FAMILY, True, "test")
    first, again, other = (look_inside({4: diffuser}, real, seed)[4] for seed in (0, 0, 1))
    assert first == again
    assert first["target_mean"] != other["target_mean"]
    assert first["diversity"] > 1
    assert all(np.isfinite(value) for value in first.values())


def test_what_the_dataset_lacks_is_left_out(real: RealPrompts) -> None:
    """No episodes beside the few-shot set of one task; the mean is over what all tasks have."""
    poor = replace(real, unseen={36: real.unseen[36]})
    diffuser = Known(space_of(real), lambda prompts: prompts)
    found = look_inside(dict.fromkeys(TASKS, diffuser), poor)
    lacking = {name for name in found[36] if name not in found[4]}
    assert lacking == {name for name in found[36] if name.startswith("real_") and "return" not in name}
    assert mean_of_tasks(found) == {
        name: pytest.approx((found[4][name] + found[36][name]) / 2) for name in found[36] if name not in lacking
    }


def test_a_family_tested_on_its_training_tasks_has_no_training_prompts_of_the_target(real: RealPrompts) -> None:
    few_shot = {0: real.training.select(real.training.index.tasks == 0)}
    seen = replace(real, training=few_shot[0], few_shot=few_shot, unseen={})
    found = look_inside({0: Known(space_of(real), lambda prompts: prompts)}, seen)[0]
    assert "training_nearest" not in found
    assert found["task_accuracy"] == found["task_chance"] == 1
