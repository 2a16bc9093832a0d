"""What every task family must hold, and the published facts of each; beside metaworld itself: test_meta_world.py."""

import math
import pickle
from pathlib import Path
from typing import Any

import gymnasium
import gymnasium.envs.mujoco
import mujoco
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from promptdiffuser.errors import UserError
from promptdiffuser.tasks import FAMILIES, get_family
from promptdiffuser.tasks.families import ant_dir, body_params
from promptdiffuser.tasks.families.meta_world import MetaWorldEnv
from promptdiffuser.tasks.families.walker_params import WalkerParamsEnv
from promptdiffuser.tasks.family import LearnedExpert, TaskFamily

ASSETS = Path(gymnasium.envs.mujoco.__file__).parent / "assets"
STEPS = 30
EXACT = 1e-9
"""Allowed difference of rewards that are computed twice in float64."""

CHEETAH_VEL, CHEETAH_DIR, ANT, ANT_OOD, HOPPER, WALKER = (
    FAMILIES[name]
    for name in ("cheetah-vel", "cheetah-dir", "ant-dir", "ant-dir-ood", "hopper-params", "walker-params")
)
LEARNED = [family for family in FAMILIES.values() if isinstance(family.expert, LearnedExpert)]

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
every_learned_family = pytest.mark.parametrize("family", LEARNED, ids=lambda family: family.name)
every_cheetah = pytest.mark.parametrize("family", [CHEETAH_VEL, CHEETAH_DIR], ids=lambda family: family.name)
every_ant = pytest.mark.parametrize("family", [ANT, ANT_OOD], ids=lambda family: family.name)
every_body = pytest.mark.parametrize("family", [HOPPER, WALKER], ids=lambda family: family.name)
infinite_bounds_are_meant = pytest.mark.filterwarnings("ignore:.*A Box observation space (min|max)imum value")


def few_tasks(family: TaskFamily) -> tuple[int, ...]:
    """Return the first task, one in the middle and the last."""
    tasks = family.tasks
    return tuple(dict.fromkeys((tasks[0], tasks[len(tasks) // 2], tasks[-1])))


def random_actions(family: TaskFamily, num: int = STEPS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (num, family.action_dim)).astype(np.float32)


def trajectory(env: gymnasium.Env, actions: np.ndarray, seed: int = 0) -> list[np.ndarray]:
    """Return observations, rewards and ends."""
    observations, rewards, ends = [env.reset(seed=seed)[0]], [], []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        ends.append((terminated, truncated))
    return [np.array(observations), np.array(rewards), np.array(ends)]


def equal(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(left, right, strict=True))


class Beside:
    """A simulation of one of gymnasium's models that no environment ever touches."""

    def __init__(self, xml_file: str, frame_skip: int) -> None:
        self.model = mujoco.MjModel.from_xml_path(str(ASSETS / xml_file))
        self.data, self.frame_skip = mujoco.MjData(self.model), frame_skip
        self.seconds = frame_skip * self.model.opt.timestep

    def start(self, qpos: np.ndarray, qvel: np.ndarray) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        mujoco.mj_forward(self.model, self.data)

    def step(self, action: np.ndarray) -> None:
        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data, nstep=self.frame_skip)
        mujoco.mj_rnePostConstraint(self.model, self.data)

    def torso(self) -> np.ndarray:
        return self.data.body("torso").xpos.copy()


def squared(values: np.ndarray) -> float:
    return math.fsum(float(value) ** 2 for value in values.ravel())


# --- every family


def test_there_are_twelve_families_with_names_and_ids_of_their_own() -> None:
    assert len(FAMILIES) == 12
    assert {name: family.name for name, family in FAMILIES.items()} == {name: name for name in FAMILIES}
    assert len({family.gymnasium_id for family in FAMILIES.values()}) == len(FAMILIES)
    assert all(get_family(name) is family for name, family in FAMILIES.items())


def test_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown task family 'cheetah-fly'") as refusal:
        get_family("cheetah-fly")
    assert all(name in str(refusal.value) for name in FAMILIES)


def test_registering_again_is_harmless() -> None:
    before = dict(gymnasium.registry)
    for family in FAMILIES.values():
        family.register_environment()
    assert gymnasium.registry == before


@every_family
def test_splits_are_disjoint_and_complete(family: TaskFamily) -> None:
    splits = [set(tasks) for tasks in (family.train_tasks, family.validation_tasks, family.test_tasks)]
    assert [len(split) for split in splits] == [
        len(tasks) for tasks in (family.train_tasks, family.validation_tasks, family.test_tasks)
    ], "a split names a task twice"
    assert all(splits)
    train, validation, test = splits
    if family.tests_on_training_tasks:
        assert test <= train
    else:
        assert not train & validation
        assert not train & test
        assert not validation & test
    assert list(family.tasks) == sorted(train | validation | test)
    # ant-dir-ood's split is published to leave directions of ant-dir unused.
    assert family.tasks == (tuple(range(len(family.tasks))) if family is not ANT_OOD else family.tasks)
    assert set(family.tasks) <= set(get_family(family.expert_of or family.name).tasks)


@every_family
def test_caution_says_what_the_split_cannot_show(family: TaskFamily) -> None:
    assert bool(family.caution) == (family.tests_on_training_tasks or bool(family.extrapolation_tasks))
    assert set(family.extrapolation_tasks) <= set(family.test_tasks)
    assert all(f"{task} ({family.label(task)})" in family.caution for task in family.extrapolation_tasks)


@every_family
def test_every_task_has_a_goal_and_a_label(family: TaskFamily) -> None:
    goals = [family.goal(task) for task in family.tasks]
    assert {len(goal) for goal in goals} == {len(goals[0])}
    assert all(isinstance(goal, tuple) for goal in goals)
    assert np.isfinite(goals).all()
    assert all(family.label(task).strip() for task in family.tasks)


@every_family
@infinite_bounds_are_meant
def test_environment_passes_the_checker_of_gymnasium(family: TaskFamily) -> None:
    check_env(family.make(family.tasks[-1]), skip_render_check=True)  # rendering needs a display


@every_family
def test_spaces_are_those_that_the_family_declares(family: TaskFamily) -> None:
    env = family.make(family.tasks[-1])
    assert env.observation_space.shape == (family.observation_dim,)
    assert env.observation_space.dtype == np.float32
    assert env.action_space.shape == (family.action_dim,)
    assert (env.action_space.low == -1).all()
    assert (env.action_space.high == 1).all()
    observation, _ = env.reset(seed=0)
    for action in random_actions(family, 3):
        assert observation.shape == (family.observation_dim,)
        assert observation.dtype == np.float32
        observation, reward, terminated, truncated, info = env.step(action)
        assert isinstance(reward, float)
        assert not truncated
        assert family.terminates or not terminated
        assert ("success" in info) == family.has_success


@every_family
def test_seeded_reset_and_actions_give_a_bitwise_equal_trajectory(family: TaskFamily) -> None:
    task, actions = few_tasks(family)[1], random_actions(family)
    env = family.make(task)
    first = trajectory(env, actions, seed=3)
    assert equal(trajectory(env, actions, seed=3), first)
    assert equal(trajectory(family.make(task), actions, seed=3), first)
    other_start = trajectory(env, actions, seed=4)
    assert np.array_equal(other_start[0][0], first[0][0]) == (not family.random_start)
    assert equal(other_start, first) == (not family.random_start)


@every_family
def test_an_environment_that_became_another_task_is_as_good_as_new(family: TaskFamily) -> None:
    (one, *_, other), actions = few_tasks(family), random_actions(family)
    fresh = {task: trajectory(family.make(task), actions) for task in (one, other)}
    env = family.make(one)
    for task in (one, other, one):
        env.set_task(task)
        assert equal(trajectory(env, actions), fresh[task]), task
    assert not equal(fresh[one], fresh[other])


@every_family
def test_goal_does_not_show_in_the_first_observation(family: TaskFamily) -> None:
    if family.entry_point is MetaWorldEnv:
        pytest.skip("where the object starts is part of a task; test_meta_world.py moves the goal alone")
    starts = [family.make(task).reset(seed=0)[0] for task in few_tasks(family)]
    assert all(np.array_equal(start, starts[0]) for start in starts)


@pytest.mark.parametrize("family", [CHEETAH_VEL, CHEETAH_DIR, ANT, ANT_OOD], ids=lambda family: family.name)
def test_goal_that_is_but_a_reward_never_shows_in_observations(family: TaskFamily) -> None:
    runs = [trajectory(family.make(task), random_actions(family)) for task in few_tasks(family)]
    for observations, rewards, _ in runs[1:]:
        assert np.array_equal(observations, runs[0][0])
        assert not np.array_equal(rewards, runs[0][1])


@every_family
def test_pickled_environment_is_the_task_that_it_has_become(family: TaskFamily) -> None:
    (one, *_, other), actions = few_tasks(family), random_actions(family, 10)
    env = family.make(one)
    for task in (one, other):
        env.set_task(task)
        assert equal(trajectory(pickle.loads(pickle.dumps(env)), actions), trajectory(env, actions)), task


@every_family
def test_unknown_task_is_refused_with_the_range(family: TaskFamily) -> None:
    # ant-dir-ood's environment is ant-dir's, with all of its tasks.
    owner = get_family(family.expert_of or family.name)
    env = family.make(family.tasks[0])
    for task in (-1, len(owner.tasks)):
        message = f"{owner.name} has no task {task}; its tasks are 0 to {len(owner.tasks) - 1}"
        with pytest.raises(UserError, match=message):
            family.make(task)
        with pytest.raises(UserError, match=message):
            gymnasium.make(family.gymnasium_id, task=task)
        with pytest.raises(UserError, match=message):
            env.set_task(task)
    fresh, actions = family.make(family.tasks[0]), random_actions(family, 3)
    assert equal(trajectory(env, actions), trajectory(fresh, actions)), "a refused task left a trace"


@every_family
@pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")
def test_registered_id_makes_the_task_and_truncates_at_the_horizon(
    family: TaskFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    specification = gymnasium.spec(family.gymnasium_id)
    assert specification.max_episode_steps == family.horizon
    restored = EnvSpec.from_json(specification.to_json())
    assert restored.to_json() == specification.to_json()
    task = family.tasks[-1]
    env = gymnasium.make(f"promptdiffuser.tasks:{family.gymnasium_id}", task=task)
    # An Ant that does nothing stands until the end; a walker falls, whatever random actions it takes.
    monkeypatch.setattr(WalkerParamsEnv, "has_fallen", staticmethod(lambda positions: False))
    actions = random_actions(family, family.horizon) * (not family.terminates)
    made, bare = trajectory(env, actions), trajectory(family.make(task), actions)
    assert np.array_equal(gymnasium.make(restored, task=task).reset(seed=0)[0], made[0][0])
    assert made[2][:, 1].tolist() == [False] * (family.horizon - 1) + [True]
    assert not made[2][:, 0].any()
    assert equal(made[:2], bare[:2])
    assert not bare[2].any(), "a bare environment leaves the horizon to its caller"


@every_learned_family
def test_what_an_expert_reads_and_does_depends_on_its_own_episode_alone(family: TaskFamily) -> None:
    assert isinstance(family.expert, LearnedExpert)
    rng = np.random.default_rng(0)
    tasks = [family.tasks[place % len(family.tasks)] for place in (0, 1, 5, 11, 23)]
    goals = np.array([family.goal(task) for task in tasks], np.float32)
    observations = rng.normal(size=(len(tasks), family.observation_dim)).astype(np.float32)
    outputs = rng.normal(size=(len(tasks), family.action_dim)).astype(np.float32)
    for read, given in ((family.expert.features, observations), (family.expert.actions, outputs)):
        before = given.copy()
        together = read(given, goals)
        alone = [read(given[row : row + 1], goals[row : row + 1])[0] for row in range(len(tasks))]
        assert np.array_equal(together, np.stack(alone))
        assert together.dtype == np.float32
        assert np.array_equal(given, before), "it wrote into what it was given"
    assert family.expert.actions(outputs, goals).shape == (len(tasks), family.action_dim)


# --- published facts


def test_horizons_targets_and_scales_are_the_published_ones() -> None:
    assert {family.name: (family.horizon, family.target_return, family.return_scale) for family in LEARNED} == {
        "cheetah-dir": (200, 1500, 1000),
        "cheetah-vel": (200, 0, 500),
        "ant-dir": (200, 755, 500),
        "ant-dir-ood": (200, 759, 500),
        "hopper-params": (200, 388, 500),
        "walker-params": (200, 335, 500),
    }


def test_only_the_families_that_say_so_end_early_or_know_success() -> None:
    meta_world = {name for name, family in FAMILIES.items() if family.entry_point is MetaWorldEnv}
    assert meta_world == {"pick-place", "pick-place-500", "reach", "reach-500", "ml10", "ml45"}
    terminating = {"ant-dir", "ant-dir-ood", "walker-params"}
    assert {name for name, family in FAMILIES.items() if family.terminates} == terminating
    assert {name for name, family in FAMILIES.items() if family.has_success} == meta_world
    assert {name for name, family in FAMILIES.items() if not family.random_start} == meta_world
    assert [name for name, family in FAMILIES.items() if family.tests_on_training_tasks] == ["cheetah-dir"]
    assert {name: family.expert_of for name, family in FAMILIES.items() if family.expert_of} == {
        "ant-dir-ood": "ant-dir"
    }


def test_cheetah_vel_has_the_published_tasks() -> None:
    assert len(CHEETAH_VEL.tasks) == 40
    velocities = {task: CHEETAH_VEL.goal(task)[0] for task in CHEETAH_VEL.test_tasks}
    assert velocities == pytest.approx({2: 0.225, 7: 0.6, 15: 1.2, 23: 1.8, 26: 2.025})
    assert set(CHEETAH_VEL.train_tasks) | set(CHEETAH_VEL.validation_tasks) == set(range(40)) - set(velocities)
    assert len(CHEETAH_VEL.validation_tasks) == 5
    assert [CHEETAH_VEL.goal(task)[0] for task in (0, 39)] == pytest.approx([0.075, 3.0])
    assert CHEETAH_VEL.label(26) == "2.02 m/s"


def test_cheetah_dir_trains_and_tests_on_both_directions() -> None:
    assert CHEETAH_DIR.train_tasks == CHEETAH_DIR.test_tasks == (0, 1)
    assert [CHEETAH_DIR.goal(task) for task in (0, 1)] == [(1.0,), (-1.0,)]
    assert [CHEETAH_DIR.label(task) for task in (0, 1)] == ["forwards", "backwards"]
    assert "tests on training tasks" in CHEETAH_DIR.caution


def test_ant_dir_has_the_published_tasks() -> None:
    assert len(ANT.tasks) == 50
    assert len(ANT.validation_tasks) == 5
    degrees = {task: np.degrees(ANT.goal(task)[0]) for task in ANT.test_tasks}
    assert degrees == pytest.approx({6: 14.1, 17: 101.9, 23: 51.8, 30: 204.5, 41: 237.3}, abs=0.05)
    assert ANT.label(30) == "204.5°"
    # First and last of each ten of the published list.
    places = (0, 9, 10, 19, 20, 29, 30, 39, 40, 49)
    radians = (1.203361, 0.377272, 5.428937, 3.528065, 2.488439, 5.223614, 3.568793, 0.427123, 6.036808, 0.183199)
    assert [ANT.goal(task)[0] for task in places] == list(radians)
    assert len({ANT.goal(task) for task in ANT.tasks}) == 50


def test_ant_dir_ood_has_the_published_split_with_one_task_that_extrapolates() -> None:
    trained = {task: np.degrees(ANT_OOD.goal(task)[0]) for task in ANT_OOD.train_tasks}
    assert trained == pytest.approx(
        {8: 340.4, 13: 234.9, 16: 174.1, 20: 142.6, 22: 150.7, 26: 258.5, 32: 196.2, 37: 319.7}, abs=0.05
    )
    tested = {task: np.degrees(ANT_OOD.goal(task)[0]) for task in ANT_OOD.test_tasks}
    assert tested == pytest.approx({1: 24.4, 4: 229.5, 41: 237.3}, abs=0.05)
    outside = [task for task, angle in tested.items() if not min(trained.values()) <= angle <= max(trained.values())]
    assert list(ANT_OOD.extrapolation_tasks) == outside == [1]
    assert "1 (24.4°)" in ANT_OOD.caution
    for task in ANT_OOD.validation_tasks:
        apart = [abs(np.degrees(ANT_OOD.goal(task)[0]) - angle) for angle in tested.values()]
        assert min(apart) > 5


@every_body
def test_body_families_hold_out_the_last_five_bodies(family: TaskFamily) -> None:
    assert len(family.tasks) == 50
    assert family.test_tasks == (45, 46, 47, 48, 49)
    assert len(family.validation_tasks) == 5
    assert family.label(7) == "body 7"


# --- what the environments compute


@every_cheetah
def test_cheetah_follows_from_the_published_formulas(family: TaskFamily) -> None:
    for task in few_tasks(family):
        (goal,) = family.goal(task)
        env: Any = family.make(task)
        env.reset(seed=5)
        beside = Beside("half_cheetah.xml", 5)
        beside.start(env.data.qpos, env.data.qvel)
        assert beside.seconds == pytest.approx(0.05)
        for action in random_actions(family, 50, seed=task):
            x_before = beside.data.qpos[0]
            beside.step(action)
            observation, reward, terminated, _, info = env.step(action)
            expected = np.concatenate([beside.data.qpos[1:], beside.data.qvel, beside.torso()])
            assert np.array_equal(observation, expected.astype(np.float32))
            velocity = (beside.data.qpos[0] - x_before) / 0.05
            gain = -abs(velocity - goal) if family is CHEETAH_VEL else goal * velocity
            assert reward == pytest.approx(gain - 0.05 * squared(action), abs=EXACT)
            assert info["reward_velocity"] + info["reward_ctrl"] == pytest.approx(reward, abs=EXACT)
            assert not terminated


@every_cheetah
def test_cheetah_starts_where_the_published_one_does(family: TaskFamily) -> None:
    env = family.make(family.tasks[-1])
    starts = np.array([env.reset(seed=seed)[0] for seed in range(300)])
    joints, velocities = starts[:, :8], starts[:, 8:17]
    assert 0.09 < np.abs(joints).max() <= 0.1  # uniform in +-0.1
    assert joints.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.1)
    assert velocities.std() == pytest.approx(0.1, rel=0.1)  # 0.1 times a standard normal


@every_ant
def test_ant_follows_from_the_published_formulas(family: TaskFamily) -> None:
    contact_costs = []
    for task in few_tasks(family):
        (angle,) = family.goal(task)
        env: Any = family.make(task)
        env.reset(seed=5)
        beside = Beside("ant.xml", 5)
        beside.start(env.data.qpos, env.data.qvel)
        assert beside.seconds == pytest.approx(0.05)
        for action in random_actions(family, 50, seed=task):
            before = beside.torso()
            beside.step(action)
            observation, reward, terminated, _, info = env.step(action)
            expected = np.concatenate([beside.data.qpos[2:], beside.data.qvel])
            assert np.array_equal(observation, expected.astype(np.float32))
            velocity = (beside.torso() - before) / 0.05
            along = velocity[0] * math.cos(angle) + velocity[1] * math.sin(angle)
            contact_costs.append(0.0005 * squared(np.clip(beside.data.cfrc_ext, -1, 1)))
            assert reward == pytest.approx(along - 0.5 * squared(action) - contact_costs[-1] + 1.0, abs=EXACT)
            assert sum(info.values()) == pytest.approx(reward, abs=EXACT)
            assert terminated == (not 0.2 <= beside.data.qpos[2] <= 1.0)
    assert 0.001 < max(contact_costs) <= 0.0005 * 14 * 6  # 13 bodies and the world, a force and a torque each


@pytest.mark.parametrize(
    ("height", "speed", "on_its_back", "ends"),
    [
        (0.55, 0.0, False, False),
        (0.9, 0.0, False, False),
        (1.1, 0.0, False, True),
        (0.99, 3.0, False, True),
        (0.25, 0.0, True, False),
        (0.25, -20.0, True, True),  # pressed into the ground
    ],
)
def test_ant_ends_where_its_torso_leaves_the_published_heights(
    height: float, speed: float, on_its_back: bool, ends: bool
) -> None:
    env: Any = ANT.make(0)
    env.reset(seed=0)
    position, velocity = env.init_qpos.copy(), np.zeros(14)
    position[2], velocity[2] = height, speed
    position[3:7] = (0, 1, 0, 0) if on_its_back else (1, 0, 0, 0)
    env.set_state(position, velocity)
    _, _, terminated, truncated, info = env.step(np.zeros(8, np.float32))
    assert terminated == ends == (not 0.2 <= env.data.qpos[2] <= 1.0)
    assert not truncated
    assert info["reward_survive"] == 1.0  # the published reward pays it on the last step too


def test_ant_starts_where_the_published_one_does() -> None:
    env = ANT.make(0)
    starts = np.array([env.reset(seed=seed)[0] for seed in range(300)])
    position = np.array([0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1])
    apart = starts[:, :13] - position
    assert 0.09 < np.abs(apart[:, [0, *range(5, 13)]]).max() <= 0.1 + 1e-6  # uniform in +-0.1
    assert starts[:, 13:].std() == pytest.approx(0.1, rel=0.1)


@every_body
def test_body_family_follows_from_its_formulas_with_the_goal_as_its_body(family: TaskFamily) -> None:
    xml_file, frame_skip = {"hopper-params": ("hopper.xml", 4), "walker-params": ("walker2d_v5.xml", 5)}[family.name]
    fell = False
    for task in few_tasks(family):
        env: Any = family.make(task)
        env.reset(seed=5)
        beside = Beside(xml_file, frame_skip)
        exponents = np.array(family.goal(task))
        for name, base in (("body_mass", 1.5), ("body_inertia", 1.5), ("dof_damping", 1.3), ("geom_friction", 1.5)):
            values = getattr(beside.model, name)
            drawn, exponents = exponents[: values.size], exponents[values.size :]
            values *= base ** drawn.reshape(values.shape)
        assert not exponents.size, "the goal says more than the body has"
        mujoco.mj_setConst(beside.model, beside.data)
        beside.start(env.data.qpos, env.data.qvel)
        for action in random_actions(family, 50, seed=task):
            x_before = beside.data.qpos[0]
            beside.step(action)
            observation, reward, terminated, _, info = env.step(action)
            expected = np.concatenate([beside.data.qpos[1:], np.clip(beside.data.qvel, -10, 10)])
            assert np.array_equal(observation, expected.astype(np.float32))
            velocity = (beside.data.qpos[0] - x_before) / beside.seconds
            walker = family.name == "walker-params"
            assert reward == pytest.approx(velocity - 0.001 * squared(action) + walker, abs=EXACT)
            assert sum(info.values()) == pytest.approx(reward, abs=EXACT)
            height, pitch = beside.data.qpos[1:3]
            assert terminated == (walker and not (0.8 < height < 2.0 and -1 < pitch < 1))
            fell |= terminated
            if terminated:
                break
    assert fell == (family.name == "walker-params"), "random actions bring the walker down"


@every_body
def test_bodies_are_fifty_different_ones_within_the_published_range(family: TaskFamily) -> None:
    xml_file = {"hopper-params": "hopper.xml", "walker-params": "walker2d_v5.xml"}[family.name]
    nominal = Beside(xml_file, 1).model
    env: Any = family.make(0)
    masses, pooled = set(), []
    for task in family.tasks:
        env.set_task(task)
        for name, base in body_params.BASES.items():
            before, now = getattr(nominal, name), getattr(env.model, name)
            assert ((now == 0) == (before == 0)).all()
            exponents = np.log(now[before > 0] / before[before > 0]) / np.log(base)
            assert np.abs(exponents).max() <= 3 + 1e-9
            pooled.append(exponents)
        masses.add(env.model.body_mass.tobytes())
        # Constants that MuJoCo derives from the masses belong to this body.
        assert env.model.body_subtreemass[0] == pytest.approx(env.model.body_mass.sum(), rel=1e-12)
        assert env.model.dof_M0[0] == pytest.approx(env.model.body_mass.sum(), rel=1e-6)
    assert len(masses) == len({family.goal(task) for task in family.tasks}) == 50
    exponents = np.concatenate(pooled)
    assert exponents.std() == pytest.approx(6 / np.sqrt(12), rel=0.05)  # uniform in +-3
    assert exponents.mean() == pytest.approx(0, abs=0.2)


@every_body
def test_bodies_never_change_between_versions(family: TaskFamily) -> None:
    """Another body would be another task: shipped experts and every dataset belong to these."""
    known = {"hopper-params": (-1.832468, -0.851304), "walker-params": (-0.993754, 2.604091)}
    assert [family.goal(task)[0] for task in (0, 49)] == pytest.approx(known[family.name], abs=1e-6)


# --- ant-dir's expert


QUARTER = np.pi / 2


@pytest.mark.parametrize("goal", [0.2, 1.0, 2.9, 5.0])
def test_a_goal_turned_by_quarters_is_the_same_task_to_the_expert(goal: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the start without noise, equal outputs of the network lead through equal features to equal rewards."""
    goals = [(goal + quarter * QUARTER) % (2 * np.pi) for quarter in range(4)]
    monkeypatch.setattr(ant_dir, "DIRECTIONS", tuple(goals))
    assert isinstance(ANT.expert, LearnedExpert)
    outputs = random_actions(ANT, 20, seed=1)
    runs = []
    for task, turned in enumerate(goals):
        env: Any = ANT.make(task)
        env.reset(seed=0)
        env.set_state(env.init_qpos, np.zeros(14))
        observation, features, rewards = env._get_obs(), [], []
        told = np.array([[turned]], np.float32)
        for output in outputs:
            features.append(ANT.expert.features(observation[None], told)[0])
            observation, reward, *_ = env.step(ANT.expert.actions(output[None], told)[0])
            rewards.append(reward)
        runs.append((np.array(features), np.array(rewards)))
    for features, rewards in runs[1:]:
        np.testing.assert_allclose(features, runs[0][0], atol=2e-4)
        np.testing.assert_allclose(rewards, runs[0][1], atol=2e-4)
    assert np.abs(np.diff(runs[0][0], axis=0)).max() > 0.5, "the Ant hardly moved"


def test_features_do_not_depend_on_the_sign_of_the_quaternion() -> None:
    assert isinstance(ANT.expert, LearnedExpert)
    env: Any = ANT.make(0)
    observations = trajectory(env, random_actions(ANT, 50, seed=2))[0]
    negated = observations.copy()
    negated[:, 1:5] *= -1
    for task in few_tasks(ANT):
        goals = np.full((len(observations), 1), ANT.goal(task)[0], np.float32)
        assert np.array_equal(ANT.expert.features(observations, goals), ANT.expert.features(negated, goals))


@every_cheetah
def test_cheetah_features_are_proprioception_and_the_goal(family: TaskFamily) -> None:
    assert isinstance(family.expert, LearnedExpert)
    observations = np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32)
    goals = np.array([[0.1], [0.2], [0.3]], np.float32)
    features = family.expert.features(observations, goals)
    assert np.array_equal(features, np.column_stack([observations[:, :17], goals]))
