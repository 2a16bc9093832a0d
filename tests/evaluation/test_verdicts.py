"""What a task says of a prompt: the simulator repeats what it did, a regression comes near it.

Axes: S observation.
"""

import dataclasses

import numpy as np
import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import PromptPool, cut_pool_pieces
from promptdiffuser.evaluation.verdicts import RegressionJudge, SimulatorJudge, Steps, judge_of
from promptdiffuser.tasks import FAMILIES
from tests.rollout.synthetic_policies import tiny_pool

FAMILY = FAMILIES["cheetah-vel"]
TASK = 7


def pool_of(episodes: Episodes, normaliser: Normaliser, length: int = 5) -> PromptPool:
    return PromptPool.build(cut_pool_pieces(episodes, length, 0), normaliser, torch.device("cpu"))


@pytest.fixture(scope="module")
def real(small_dataset: Dataset) -> tuple[Normaliser, PromptPool, Steps, Episodes]:
    """Return the normaliser and pool of the training tasks, and the steps of a target task's prompts and episodes."""
    training, target = small_dataset.read(FAMILY.train_tasks), small_dataset.read([TASK])
    normaliser = Normaliser.fit([training], FAMILY.return_scale)
    return normaliser, pool_of(training, normaliser), Steps.of(pool_of(target, normaliser).prompts, normaliser), target


def test_steps_are_in_the_units_of_the_environment(real: tuple[Normaliser, PromptPool, Steps, Episodes]) -> None:
    _, _, steps, episodes = real
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_allclose(getattr(steps, name), getattr(episodes, name)[:, 194:199], atol=2e-5, err_msg=name)


def test_the_simulator_repeats_real_prompts(real: tuple[Normaliser, PromptPool, Steps, Episodes]) -> None:
    normaliser, training, steps, episodes = real
    judge = judge_of(FAMILY, normaliser, training)
    assert judge.is_simulator
    verdict = judge(TASK, steps)
    np.testing.assert_allclose(verdict.rewards, episodes.rewards[:, 194:199], atol=1e-4)
    np.testing.assert_allclose(verdict.observations, episodes.observations[:, 195:200], atol=2e-3)


def test_the_simulator_judges_by_the_tasks_own_reward(real: tuple[Normaliser, PromptPool, Steps, Episodes]) -> None:
    """The same steps at another goal velocity: -|v - goal| for a v that lies between the two or beyond both."""
    _, _, steps, _ = real
    judge = SimulatorJudge(FAMILY.make(0))
    own, other = (judge(task, steps).rewards for task in (TASK, 39))
    assert (np.abs(other - own) <= 0.075 * (39 - TASK) + 1e-9).all()
    assert other.mean() < own.mean() - 1


def test_a_state_that_the_simulator_loses_has_no_verdict(
    real: tuple[Normaliser, PromptPool, Steps, Episodes],
) -> None:
    _, _, steps, _ = real
    judge = SimulatorJudge(FAMILY.make(0))
    observations = steps.observations.copy()
    observations[1, 2, 8:17] = 1e12
    verdict = judge(TASK, dataclasses.replace(steps, observations=observations))
    lost = np.zeros(steps.rewards.shape, bool)
    lost[1, 2] = True
    assert np.array_equal(np.isnan(verdict.rewards), lost)
    assert np.array_equal(np.isnan(verdict.observations).all(axis=-1), lost)


def test_a_regression_is_between_the_simulator_and_a_guess(
    real: tuple[Normaliser, PromptPool, Steps, Episodes],
) -> None:
    normaliser, training, steps, episodes = real
    judge = RegressionJudge(FAMILY, normaliser, training)
    verdict, change = judge(TASK, steps), np.diff(episodes.observations[:, 194:200], axis=1)
    missed = verdict.observations - episodes.observations[:, 195:200]
    deviation_S = normaliser.state_std.numpy()
    assert 0 < np.abs(missed / deviation_S).mean() < 0.8 * np.abs(change / deviation_S).mean()
    assert np.abs(verdict.rewards - steps.rewards).mean() < 0.1
    assert not judge.is_simulator


def test_meta_world_is_judged_by_a_regression() -> None:
    family = FAMILIES["reach"]
    pool, normaliser = tiny_pool(family, [family.train_tasks[0]] * 4)
    judge = judge_of(family, normaliser, pool)
    assert not judge.is_simulator
    verdict = judge(family.test_tasks[0], Steps.of(pool.prompts, normaliser))
    assert verdict.observations.shape == (4, 5, family.observation_dim)
    assert np.isfinite(verdict.rewards).all()


def test_prompts_of_one_step_have_rewards_alone(small_dataset: Dataset) -> None:
    episodes = small_dataset.read(FAMILY.train_tasks[:2])
    normaliser = Normaliser.fit([episodes], FAMILY.return_scale)
    pool = pool_of(episodes, normaliser, length=1)
    verdict = RegressionJudge(FAMILY, normaliser, pool)(0, Steps.of(pool.prompts, normaliser))
    assert np.isfinite(verdict.rewards).all()
    assert np.isnan(verdict.observations).all()
