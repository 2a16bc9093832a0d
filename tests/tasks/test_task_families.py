"""What every task family must hold, and the published facts of each."""

import pickle

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from promptdiffuser.errors import UserError
from promptdiffuser.tasks import FAMILIES, get_family, register_environments
from promptdiffuser.tasks.family import TaskFamily

CHEETAH = FAMILIES["cheetah-vel"]
TASK = 7
STEP_SECONDS = 0.05
PUBLISHED_TEST_VELOCITIES = {2: 0.225, 7: 0.6, 15: 1.2, 23: 1.8, 26: 2.025}

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def random_actions(family: TaskFamily, num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (num, family.action_dim)).astype(np.float32)


def trajectory(env: gymnasium.Env, actions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    observations, rewards = [env.reset(seed=seed)[0]], []
    for action in actions:
        observation, reward, *_ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
    return np.array(observations), np.array(rewards)


@every_family
def test_splits_are_disjoint_and_complete(family: TaskFamily) -> None:
    splits = [*family.train_tasks, *family.validation_tasks, *family.test_tasks]
    assert len(splits) == len(set(splits)), "a task is in two splits"
    assert family.tasks == tuple(range(len(splits)))
    assert min(len(family.train_tasks), len(family.validation_tasks), len(family.test_tasks)) > 0


@every_family
@pytest.mark.filterwarnings("ignore:.*A Box observation space (min|max)imum value")  # infinite bounds are meant
def test_environment_passes_the_checker_of_gymnasium(family: TaskFamily) -> None:
    check_env(family.make(family.tasks[0]), skip_render_check=True)  # rendering needs a display


@every_family
def test_spaces_are_those_that_the_family_declares(family: TaskFamily) -> None:
    env = family.make(family.tasks[-1])
    assert env.observation_space.shape == (family.observation_dim,)
    assert env.observation_space.dtype == np.float32
    assert env.action_space.shape == (family.action_dim,)
    assert (env.action_space.low == -1).all()
    assert (env.action_space.high == 1).all()


@every_family
def test_seeded_reset_and_actions_give_a_bitwise_equal_trajectory(family: TaskFamily) -> None:
    actions = random_actions(family, 60)
    env = family.make(family.tasks[1])
    first = trajectory(env, actions, seed=3)
    again = trajectory(env, actions, seed=3)
    elsewhere = trajectory(family.make(family.tasks[1]), actions, seed=3)
    for other in (again, elsewhere):
        assert np.array_equal(first[0], other[0])
        assert np.array_equal(first[1], other[1])
    assert not np.array_equal(first[0], trajectory(env, actions, seed=4)[0])


@every_family
def test_pickled_environment_is_the_same_task(family: TaskFamily) -> None:
    actions = random_actions(family, 20)
    env = family.make(family.tasks[-2])
    copy = pickle.loads(pickle.dumps(env))
    original, copied = trajectory(env, actions, seed=1), trajectory(copy, actions, seed=1)
    assert np.array_equal(original[0], copied[0])
    assert np.array_equal(original[1], copied[1])


@every_family
@pytest.mark.parametrize("offset", [0, -1])
def test_unknown_task_is_refused_by_name(family: TaskFamily, offset: int) -> None:
    task = len(family.tasks) if offset == 0 else offset
    with pytest.raises(UserError, match=f"{family.name} has no task {task};"):
        family.make(task)
    with pytest.raises(UserError, match=f"{family.name} has no task {task};"):
        gymnasium.make(family.gymnasium_id, task=task)


def test_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown task family 'cheetah-fly'; known: .*cheetah-vel"):
        get_family("cheetah-fly")


def test_registering_again_is_harmless() -> None:
    before = dict(gymnasium.registry)
    register_environments()
    assert gymnasium.registry == before


def test_cheetah_vel_has_the_published_splits_and_velocities() -> None:
    assert len(CHEETAH.tasks) == 40
    assert {task: CHEETAH.goal(task) for task in CHEETAH.test_tasks} == pytest.approx(PUBLISHED_TEST_VELOCITIES)
    assert set(CHEETAH.train_tasks) | set(CHEETAH.validation_tasks) == set(range(40)) - set(PUBLISHED_TEST_VELOCITIES)
    assert len(CHEETAH.validation_tasks) == 5
    assert (CHEETAH.goal(0), CHEETAH.goal(39)) == pytest.approx((0.075, 3.0))


def test_cheetah_vel_has_the_published_scale_target_and_horizon() -> None:
    assert (CHEETAH.target_return, CHEETAH.return_scale, CHEETAH.horizon) == (0.0, 500.0, 200)


@pytest.mark.parametrize("prefix", ["", "promptdiffuser.tasks:"])
def test_registered_id_makes_the_task_and_truncates_at_the_horizon(prefix: str) -> None:
    env = gymnasium.make(f"{prefix}PromptDiffuser/CheetahVel-v0", task=TASK)
    assert env.unwrapped.goal == pytest.approx(0.6)
    env.reset(seed=0)
    ends = [env.step(action)[2:4] for action in random_actions(CHEETAH, 200)]
    assert not any(terminated for terminated, _ in ends)
    assert [truncated for _, truncated in ends] == [False] * 199 + [True]


def test_bare_environment_leaves_the_horizon_to_the_caller() -> None:
    env = CHEETAH.make(TASK)
    env.reset(seed=0)
    assert not any(env.step(action)[3] for action in random_actions(CHEETAH, 201))


def test_cheetah_starts_where_the_published_one_does() -> None:
    env = CHEETAH.make(TASK)
    starts = np.array([env.reset(seed=seed)[0] for seed in range(300)])
    joints, velocities = starts[:, :8], starts[:, 8:17]
    assert np.abs(joints).max() <= 0.1  # uniform in +-0.1
    assert np.abs(joints).max() > 0.09
    assert velocities.std() == pytest.approx(0.1, rel=0.1)  # 0.1 times a standard normal


def test_cheetah_observation_and_reward_follow_from_the_state_of_the_simulator() -> None:
    env = CHEETAH.make(TASK)
    env.reset(seed=5)
    # A second simulator of the same model, stepped without gymnasium: five steps of 0.01 s with the same control.
    simulated = mujoco.MjData(env.model)
    for action in random_actions(CHEETAH, 40, seed=2):
        simulated.qpos[:], simulated.qvel[:] = env.data.qpos, env.data.qvel
        simulated.qacc_warmstart[:] = env.data.qacc_warmstart
        simulated.ctrl[:] = action
        x_before = simulated.qpos[0]
        mujoco.mj_step(env.model, simulated, nstep=5)
        observation, reward, terminated, _, info = env.step(action)
        torso = simulated.xpos[env.model.body("torso").id]
        expected = np.concatenate([simulated.qpos[1:], simulated.qvel, torso]).astype(np.float32)
        assert observation.dtype == np.float32
        assert np.array_equal(observation, expected)
        velocity_error = abs((simulated.qpos[0] - x_before) / STEP_SECONDS - 0.6)
        control_cost = 0.05 * float((action.astype(np.float64) ** 2).sum())
        assert reward == pytest.approx(-velocity_error - control_cost, abs=1e-6)
        assert reward == pytest.approx(info["reward_velocity"] + info["reward_ctrl"], abs=1e-12)
        assert not terminated


def test_cheetah_observation_does_not_tell_the_goal() -> None:
    actions = random_actions(CHEETAH, 20)
    slow, fast = (trajectory(CHEETAH.make(task), actions, seed=0) for task in (0, 39))
    assert np.array_equal(slow[0], fast[0])
    assert not np.array_equal(slow[1], fast[1])


def test_expert_features_are_proprioception_and_the_goal() -> None:
    observations = np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32)
    goals = np.array([0.1, 0.2, 0.3], np.float32)
    features = CHEETAH.expert_features(observations, goals)
    assert np.array_equal(features, np.column_stack([observations[:, :17], goals]))
