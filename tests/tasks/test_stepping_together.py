"""Environments stepped together are the registered ones, to the last bit of a state."""

import gymnasium
import numpy as np
import pytest

from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.family import TaskFamily

EXACT = 1e-9
STEPS = 40


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_stepping_together_equals_the_registered_environment(family: TaskFamily) -> None:
    tasks = [family.tasks[0], family.test_tasks[-1], family.tasks[0]]
    actions_TBA = np.random.default_rng(0).uniform(-1, 1, (STEPS, len(tasks), family.action_dim)).astype(np.float32)
    family.register()
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
