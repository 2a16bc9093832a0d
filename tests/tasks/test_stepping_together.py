"""Environments stepped together are the registered ones, to the last bit of a state."""

import gymnasium
import numpy as np
import pytest

from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.families.body_params import VELOCITY_LIMIT
from promptdiffuser.tasks.family import TaskFamily

EXACT = 1e-9
STEPS = 40


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_stepping_together_equals_the_registered_environment(family: TaskFamily) -> None:
    tasks = [family.tasks[0], family.test_tasks[-1], family.tasks[0]]
    actions_TBA = np.random.default_rng(0).uniform(-1, 1, (STEPS, len(tasks), family.action_dim)).astype(np.float32)
    alone = [gymnasium.make(family.gymnasium_id, task=task) for task in tasks]
    together = [family.make(task) for task in tasks]
    for seed, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert np.array_equal(one.reset(seed=seed)[0], other.reset(seed=seed)[0])
    ended = np.zeros(len(tasks), bool)
    for actions_BA in actions_TBA:
        step = type(together[0]).step_together(together, actions_BA)
        for row, env in enumerate(alone):
            if ended[row]:
                continue
            observation, reward, terminated, _, info = env.step(actions_BA[row])
            np.testing.assert_array_equal(step.observations_BS[row], observation)
            assert step.observations_BS.dtype == observation.dtype == np.float32
            assert step.rewards_B[row] == pytest.approx(reward, abs=EXACT)
            assert step.terminated_B[row] == terminated
            assert step.successes_B[row] == bool(info.get("success", False))
            assert not step.diverged_B[row]
            ended[row] = terminated


@pytest.mark.parametrize("name", ["cheetah-vel", "ant-dir", "walker-params", "hopper-params", "reach"])
@pytest.mark.parametrize("ruin", [np.nan, 1e12])
def test_a_state_that_mujoco_replaces_shows_until_the_next_reset(name: str, ruin: float) -> None:
    family = FAMILIES[name]
    envs = [family.make(task) for task in family.tasks[:2]]
    for env in envs:
        env.reset(seed=0)
    data = envs[1].simulator.sawyer.data if name == "reach" else envs[1].data  # type: ignore[attr-defined]
    data.qvel[-1] = ruin
    actions_BA = np.zeros((2, family.action_dim), np.float32)
    assert type(envs[0]).step_together(envs, actions_BA).diverged_B.tolist() == [False, True]
    assert type(envs[0]).step_together(envs, actions_BA).diverged_B.tolist() == [False, True]
    envs[1].reset(seed=0)
    assert not type(envs[0]).step_together(envs, actions_BA).diverged_B.any()


@pytest.mark.parametrize(
    ("name", "reward_tolerance"),
    # Ant's place is the torso's as MuJoCo leaves it after a step, not quite that of the joints.
    [("cheetah-vel", 1e-6), ("cheetah-dir", 1e-6), ("ant-dir", 0.02), ("walker-params", 1e-6), ("hopper-params", 1e-6)],
)
def test_a_restored_observation_steps_on_as_the_episode_that_it_is_from(name: str, reward_tolerance: float) -> None:
    family = FAMILIES[name]
    env, restored = family.make(family.test_tasks[0]), family.make(family.test_tasks[0])
    env.reset(seed=0)
    restored.reset(seed=1)
    compared = 0
    # Small actions, so that velocities stay where hopper's and walker's observations do not clip them.
    for action_A in np.random.default_rng(0).uniform(-0.3, 0.3, (STEPS, family.action_dim)).astype(np.float32):
        # Of the start the torso's position is observed without its delay.
        observation_S = env.step_together([env], action_A[None]).observations_BS[0]
        restored.restore(observation_S)
        original, again = (type(env).step_together([one], action_A[None]) for one in (env, restored))
        if np.abs(observation_S).max() < VELOCITY_LIMIT:
            np.testing.assert_allclose(again.observations_BS[0], original.observations_BS[0], atol=1e-5)
            np.testing.assert_allclose(again.rewards_B, original.rewards_B, atol=reward_tolerance)
            compared += 1
    assert compared > STEPS / 4
    assert restored.observation_is_state


def test_an_observation_of_meta_world_is_no_state() -> None:
    """It shows the hand and the object, not the arm."""
    assert not FAMILIES["reach"].make(0).observation_is_state
