"""Meta-World's families beside metaworld itself; what every family must hold is tested in test_task_families.py."""

import pickle
import subprocess
import sys

import metaworld
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from metaworld.env_dict import ML10_V3, ML45_V3

from promptdiffuser.errors import UserError
from promptdiffuser.tasks.families import ml10, ml45, pick_place, reach
from promptdiffuser.tasks.families.meta_world import TASKS_FILE, MetaWorldEnv, MetaWorldTasks, Simulator
from promptdiffuser.tasks.family import ScriptedExpert, TaskEnv, TaskFamily

PICK_PLACE, PICK_PLACE_500 = pick_place.FAMILIES
REACH, REACH_500 = reach.FAMILIES
ML10, ML45 = ml10.FAMILY, ml45.FAMILY
ALL = (PICK_PLACE, PICK_PLACE_500, REACH, REACH_500, ML10, ML45)
PUBLISHED_TEST_TASKS = (11, 17, 25, 36, 41)
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (25, 4)).astype(np.float32)


def tasks_of(family: TaskFamily) -> MetaWorldTasks:
    return MetaWorldTasks(**family.make_options)


def trajectory(env: TaskEnv, seed: int = 0) -> np.ndarray:
    """Return observations, rewards and successes, one row a step."""
    rows = [np.append(env.reset(seed=seed)[0], (0.0, 0.0))]
    for action in ACTIONS:
        observation, reward, _, _, info = env.step(action)
        rows.append(np.append(observation.astype(np.float64), (reward, info["success"])))
    return np.array(rows)


def metaworlds_own_trajectory(task: metaworld.Task) -> np.ndarray:
    env = metaworld.ALL_V3_ENVIRONMENTS[task.env_name]()
    env.set_task(task)
    rows = [np.append(env.reset()[0].astype(np.float32), (0.0, 0.0))]
    for action in ACTIONS:
        observation, reward, _, _, info = env.step(action)
        rows.append(np.append(observation.astype(np.float32), (reward, info["success"])))
    return np.array(rows)


@pytest.fixture(scope="module", params=[PICK_PLACE, REACH], ids=lambda family: family.name)
def ml1(request: pytest.FixtureRequest) -> tuple[TaskFamily, list[metaworld.Task]]:
    (class_name,) = tasks_of(request.param).classes
    return request.param, metaworld.ML1(class_name, seed=1).train_tasks


def scripted_episode(family: TaskFamily, task: int, noise: float = 0.0) -> tuple[float, bool]:
    assert isinstance(family.expert, ScriptedExpert)
    env, controller = family.make(task), family.expert.controller(task)
    goal_BG = np.array([family.goal(task)], np.float32)
    generator = np.random.default_rng(task)
    observation, total, success = env.reset()[0], 0.0, False
    for _ in range(family.horizon):
        action = controller(family.expert.reveal(observation[None], goal_BG)[0])
        action = np.clip(action + noise * generator.normal(size=4), -1, 1).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        assert not terminated
        assert not truncated
        total, success = total + reward, success or bool(info["success"])
    return total, success


@pytest.mark.parametrize("family", [PICK_PLACE, PICK_PLACE_500, REACH, REACH_500], ids=lambda family: family.name)
def test_single_class_families_have_the_published_split(family: TaskFamily) -> None:
    assert family.test_tasks == PUBLISHED_TEST_TASKS
    assert len(family.validation_tasks) == 5
    published_training_tasks = set(range(50)) - set(PUBLISHED_TEST_TASKS)
    assert {*family.train_tasks, *family.validation_tasks} == published_training_tasks
    assert not set(family.train_tasks) & set(family.validation_tasks)


def test_horizons_targets_and_scales() -> None:
    facts = {family.name: (family.horizon, family.target_return, family.return_scale) for family in ALL}
    assert facts == {
        "pick-place": (100, 650, 650),
        "pick-place-500": (500, 5000, 5000),
        "reach": (100, 1000, 1000),
        "reach-500": (500, 5000, 5000),
        "ml10": (500, 5000, 5000),
        "ml45": (500, 5000, 5000),
    }


def test_benchmarks_hold_out_whole_classes() -> None:
    for family, module, published in ((ML10, ml10, ML10_V3), (ML45, ml45, ML45_V3)):
        assert tuple(published["train"]) == module.TRAIN_CLASSES
        assert tuple(published["test"]) == module.TEST_CLASSES
        assert family.tasks == tuple(range(50 * len([*published["train"], *published["test"]])))
        place = tasks_of(family).place
        assert {place(task)[0] for task in family.test_tasks} == set(published["test"])
        for tasks, goals in ((family.train_tasks, range(45)), (family.validation_tasks, range(45, 50))):
            everywhere = {(class_name, goal) for class_name in published["train"] for goal in goals}
            assert {place(task) for task in tasks} == everywhere


def test_vectors_are_those_that_metaworld_draws(ml1: tuple[TaskFamily, list[metaworld.Task]]) -> None:
    family, published = ml1
    drawn = [pickle.loads(task.data)["rand_vec"] for task in published]
    stored = [tasks_of(family).vector(task) for task in family.tasks]
    assert np.array_equal(drawn, stored)
    assert np.array_equal([family.goal(task) for task in family.tasks], np.array(drawn)[:, 3:])


def test_every_task_has_a_vector_and_a_goal() -> None:
    for family in (ML10, ML45):
        tasks = tasks_of(family)
        assert len({(tasks.place(task)[0], tasks.vector(task).tobytes()) for task in family.tasks}) == len(family.tasks)
        assert np.isfinite([family.goal(task) for task in family.tasks]).all()
    assert TASKS_FILE.stat().st_size < 400_000


def test_stored_goal_is_the_simulators() -> None:
    # Basketball's goal is not a part of its random vector, nor is a button's.
    for class_name in ("basketball-v3", "button-press-topdown-v3", "drawer-open-v3"):
        task = 50 * tasks_of(ML10).classes.index(class_name) + 7
        env = ML10.make(task)
        assert isinstance(env, MetaWorldEnv)
        env.reset()
        assert np.array_equal(env.simulator.goal(), ML10.goal(task))


def test_labels() -> None:
    x, y, z = PICK_PLACE.goal(3)
    assert PICK_PLACE.label(3) == f"goal ({x:.2f}, {y:.2f}, {z:.2f}) m"
    assert ML10.label(3 * 50 + 7) == "door-open-v3, goal 7"


def test_trajectory_is_that_of_metaworlds_own_environment(ml1: tuple[TaskFamily, list[metaworld.Task]]) -> None:
    family, published = ml1
    env = family.make(0)
    for task in (0, 11):  # the second one on a simulator that has a past
        env.set_task(task)
        assert np.array_equal(trajectory(env), metaworlds_own_trajectory(published[task]))


def test_goal_is_hidden(ml1: tuple[TaskFamily, list[metaworld.Task]]) -> None:
    family, _ = ml1
    assert (trajectory(family.make(2))[:, 36:39] == 0).all()
    # The object's start is part of a task, so two tasks do differ in the first observation: by nothing but that.
    (class_name,) = tasks_of(family).classes
    simulator, vector = Simulator(class_name), tasks_of(family).vector(2)
    first, goal = simulator.reset(vector), simulator.goal()
    moved = vector + np.array([0, 0, 0, 0.01, 0.02, 0.03])
    assert np.array_equal(first, simulator.reset(moved))
    assert simulator.goal() - goal == pytest.approx((0.01, 0.02, 0.03))


@pytest.mark.parametrize("family", [PICK_PLACE, ML10], ids=lambda family: family.name)
def test_resets_forget_what_ran_before(family: TaskFamily) -> None:
    elsewhere = family.tasks[-1]  # of another class in ml10
    env = family.make(3)
    first = trajectory(env, seed=0)
    again = trajectory(env, seed=1)
    other_goal, other_class = (trajectory_after_set_task(env, task) for task in (4, elsewhere))
    back = trajectory_after_set_task(env, 3)
    assert np.array_equal(first, again)
    assert np.array_equal(first, back)
    assert not np.array_equal(first, other_goal)
    assert np.array_equal(other_goal, trajectory(family.make(4)))
    assert np.array_equal(other_class, trajectory(family.make(elsewhere)))


def trajectory_after_set_task(env: TaskEnv, task: int) -> np.ndarray:
    env.set_task(task)
    return trajectory(env)


def test_set_task_keeps_the_simulator_of_a_class_and_replaces_that_of_another() -> None:
    env = ML10.make(0)
    assert isinstance(env, MetaWorldEnv)
    reach_simulator = env.simulator
    env.set_task(49)
    assert env.simulator is reach_simulator
    env.set_task(50)
    assert env.simulator is not reach_simulator


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_unknown_task_is_refused_and_the_environment_keeps_its_own(family: TaskFamily) -> None:
    env = family.make(0)
    assert isinstance(env, MetaWorldEnv)
    with pytest.raises(UserError, match=f"{family.name} has no task {len(family.tasks)};"):
        env.set_task(len(family.tasks))
    assert env.task == 0


@pytest.mark.filterwarnings("ignore:.*A Box observation space (min|max)imum value")  # infinite bounds are meant
def test_environment_passes_the_checker_of_gymnasium() -> None:
    check_env(PICK_PLACE.make(0), skip_render_check=True)  # rendering needs a display


@pytest.mark.filterwarnings("ignore:.*A Box observation space (min|max)imum value")
def test_pickled_environment_is_the_same_task_with_the_same_options() -> None:
    env = ML10.make(101, camera_name="corner")
    copy = pickle.loads(pickle.dumps(env))
    assert np.array_equal(trajectory(env), trajectory(copy))
    assert copy.simulator.sawyer.camera_name == "corner"


@pytest.mark.parametrize(("family", "task"), [(PICK_PLACE, 11), (PICK_PLACE, 0), (REACH, 17)])
def test_scripted_expert_solves_the_task(family: TaskFamily, task: int) -> None:
    total, success = scripted_episode(family, task, noise=0.1)
    assert success
    assert total > 300  # random actions get 1 in pick-place and 150 in reach on average


def test_simulator_runs_to_the_standard_horizon() -> None:
    total, success = scripted_episode(REACH_500, 36)
    assert success
    assert 4000 < total <= 5000


def test_reveal_fills_in_the_goals_and_leaves_the_observations() -> None:
    assert isinstance(REACH.expert, ScriptedExpert)
    observation_BS = np.random.default_rng(0).normal(size=(2, 39)).astype(np.float32)
    before = observation_BS.copy()
    goal_BG = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    shown_BS = REACH.expert.reveal(observation_BS, goal_BG)
    assert shown_BS.dtype == np.float64
    assert np.array_equal(shown_BS, np.column_stack([before[:, :36], goal_BG]))
    assert np.array_equal(observation_BS, before)


def test_importing_the_families_does_not_import_metaworld() -> None:
    code = (
        "import sys; from promptdiffuser.tasks.families import pick_place, reach, ml10, ml45; "
        "sys.exit('metaworld' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
