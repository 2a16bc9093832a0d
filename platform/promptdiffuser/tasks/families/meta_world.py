"""Meta-World's robot arm as task families: the hidden-goal environment, its tasks and its scripted experts.

A task is a class of Meta-World and the random vector that fixes its goal and the object's start (metaworld 3.1.1, seed
1 of its benchmarks). `meta_world_tasks.safetensors` holds the vectors, shape (50, 3 or 6), metres or radians, and the
goal positions that follow from them, shape (50, 3), metres. The file comes from

    python -m promptdiffuser.tasks.families.meta_world

metaworld is slow to import and every worker imports this module, so it is imported where it is first needed.
Axes: B episodes, S observation, G goal.
"""

import functools
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from promptdiffuser.tasks.family import Controller, Floats, Goal, ScriptedExpert, TaskEnv, TaskFamily, check_task
from promptdiffuser.tasks.mujoco_env import lost_state

NUM_GOALS = 50
"""Goals that metaworld draws for each class (metaworld/__init__.py `_N_GOALS`)."""
BENCHMARK_SEED = 1
"""Prompt-DT's tasks are those of `metaworld.ML1(name, seed=1)`; the seed is ours for ML10 and ML45."""
STANDARD_HORIZON = 500
"""Meta-World's own horizon; its simulators refuse step 501 (metaworld/sawyer_xyz_env.py `max_path_length`)."""
STANDARD_TARGET_RETURN = 5000.0
"""Ten a step for 500 steps, the most that the reward can give; LPDT asks it of reach and pick-place (utils.py)."""
OBSERVATION_DIM, ACTION_DIM, GOAL_DIM = 39, 4, 3
TASKS_FILE = Path(str(resources.files("promptdiffuser.tasks"))) / "meta_world_tasks.safetensors"

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


@dataclass(frozen=True)
class _Snapshot:
    """All that an episode or another task can change in a metaworld simulator and that its future depends on."""

    attributes: dict[str, Any]
    # metaworld sets the goal's site and the object's body in the model itself.
    site_pos: NDArray[np.float64]
    body_pos: NDArray[np.float64]
    state: NDArray[np.float64]

    @staticmethod
    def take(sawyer: Any) -> "_Snapshot":
        """Copy what the simulator holds now."""
        state = np.empty(mujoco.mj_stateSize(sawyer.model, _STATE))
        mujoco.mj_getState(sawyer.model, sawyer.data, state, _STATE)
        # Attributes are replaced and never written into, so the dictionary's copy need not be deep. Some of them are
        # views of MuJoCo's arrays and have to stay that: metaworld's rewards read the present through them.
        return _Snapshot(dict(vars(sawyer)), sawyer.model.site_pos.copy(), sawyer.model.body_pos.copy(), state)

    def restore(self, sawyer: Any) -> None:
        """Put the simulator back."""
        vars(sawyer).clear()
        vars(sawyer).update(self.attributes)
        sawyer.model.site_pos[:], sawyer.model.body_pos[:] = self.site_pos, self.body_pos
        # Positions in the world follow from the state; computing them must not leave a trace in the state.
        mujoco.mj_setState(sawyer.model, sawyer.data, self.state, _STATE)
        mujoco.mj_forward(sawyer.model, sawyer.data)
        mujoco.mj_setState(sawyer.model, sawyer.data, self.state, _STATE)


class Simulator:
    """One of metaworld's environments, goal hidden, whose resets forget everything that ran before.

    metaworld resets by moving the arm to its start with 100 simulated actions, as dear as 20 steps. Here each task is
    reset so once, from the state of a new simulator, and put back from memory after that.
    """

    def __init__(self, class_name: str, **options: Any) -> None:
        """Build the simulator of a class such as "reach-v3"; options go to metaworld's environment."""
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        self.class_name = class_name
        self.sawyer: Any = ALL_V3_ENVIRONMENTS[class_name](**options)
        self._new = _Snapshot.take(self.sawyer)
        self._starts: dict[bytes, tuple[_Snapshot, NDArray[np.float64]]] = {}

    def reset(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """Start an episode of the task with this random vector; return the first observation (S,)."""
        from metaworld.types import Task

        key = vector.tobytes()
        if key not in self._starts:
            self._new.restore(self.sawyer)
            task = {"env_cls": type(self.sawyer), "rand_vec": vector, "partially_observable": True}
            self.sawyer.set_task(Task(self.class_name, pickle.dumps(task)))
            observation = self.sawyer.reset()[0]
            self._starts[key] = _Snapshot.take(self.sawyer), observation
        start, first_observation = self._starts[key]
        start.restore(self.sawyer)
        return first_observation.copy()

    def goal(self) -> NDArray[np.float64]:
        """Return the goal position (G,), metres, that the observation hides."""
        position: NDArray[np.float64] = self.sawyer._get_pos_goal().copy()
        return position


@functools.cache
def _stored() -> dict[str, NDArray[np.float64]]:
    return load_file(TASKS_FILE)


@dataclass(frozen=True)
class MetaWorldTasks:
    """The tasks of a family: 50 goals of each of its classes, task id = 50 * class + goal."""

    family: str
    benchmark: str
    """Which draw of random vectors: "ml1", "ml10" or "ml45"."""
    classes: tuple[str, ...]

    def place(self, task: int) -> tuple[str, int]:
        """Return the name of a task's class and the goal's number in it; raises `UserError` if the task is unknown."""
        check_task(self.family, task, NUM_GOALS * len(self.classes))
        return self.classes[task // NUM_GOALS], task % NUM_GOALS

    def vector(self, task: int) -> NDArray[np.float64]:
        """Return the random vector of a task, shape (3,) or (6,)."""
        class_name, goal = self.place(task)
        vector: NDArray[np.float64] = _stored()[f"{self.benchmark}/{class_name}"][goal]
        return vector

    def goal(self, task: int) -> Goal:
        """Return the goal position of a task, metres."""
        class_name, goal = self.place(task)
        return tuple(_stored()[f"{self.benchmark}/{class_name}/goal"][goal].tolist())

    def label(self, task: int) -> str:
        """Return a task in words."""
        class_name, goal = self.place(task)
        if len(self.classes) > 1:
            return f"{class_name}, goal {goal}"
        x, y, z = self.goal(task)
        return f"goal ({x:.2f}, {y:.2f}, {z:.2f}) m"

    def controller(self, task: int) -> Controller:
        """Return metaworld's scripted policy for the class of a task."""
        from metaworld.policies import ENV_POLICY_MAP

        # The policies ask for more than the arm can do and warn of it on every step; actions are clipped anyway.
        warnings.filterwarnings("ignore", message="Constant", module=r"metaworld\.policies")
        policies: dict[str, Any] = ENV_POLICY_MAP
        policy = policies[self.place(task)[0]]()
        return lambda observation: np.asarray(policy.get_action(observation), np.float64)


class MetaWorldEnv(TaskEnv):
    """Meta-World's Sawyer arm at one of the tasks of a family, the goal hidden.

    Observation (39, float32): the hand's position (3), how far the gripper is open (1) and the objects' positions and
    orientations (14), the same 18 numbers one step before, zeros where Meta-World would show the goal (3). Action
    (4, float32) in [-1, 1]: the hand's displacement in centimetres (3) and the gripper's effort. Reward: Meta-World
    v3's, 0 to 10. `info["success"]` is 1.0 where the task is solved. Episodes never end by themselves; the simulator
    refuses step 501. All episodes of a task start alike, whatever the seed.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 80}  # noqa: RUF012

    def __init__(self, task: int, family: str, benchmark: str, classes: Sequence[str], **options: Any) -> None:
        """Make the environment of a task of `MetaWorldTasks(family, benchmark, classes)`.

        Other arguments, `render_mode` and `camera_name` among them, go to metaworld's environment.
        """
        self._tasks = MetaWorldTasks(family, benchmark, tuple(classes))
        self._options = options
        self.task = task
        self.simulator = Simulator(self._tasks.place(task)[0], **options)
        self.render_mode = options.get("render_mode")
        self.observation_space = Box(-np.inf, np.inf, (OBSERVATION_DIM,), np.float32)
        self.action_space = Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the constructor's arguments."""
        return _make_again, (self.task, self._tasks, self._options)

    def set_task(self, task: int) -> None:
        class_name, _ = self._tasks.place(task)
        self.task = task
        if self.simulator.class_name != class_name:
            self._replace_simulator(class_name)

    def _replace_simulator(self, class_name: str) -> None:
        self.close()
        self.simulator = Simulator(class_name, **self._options)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        super().reset(seed=seed)
        if self.diverged:
            # Meta-World's reset leaves MuJoCo's counts of warnings, and who knows what else of a ruined state.
            self._replace_simulator(self.simulator.class_name)
        return self.simulator.reset(self._tasks.vector(self.task)).astype(np.float32), {}

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        observation, reward, _, _, info = self.simulator.sawyer.step(action)
        return observation.astype(np.float32), float(reward), False, False, info

    @property
    def diverged(self) -> bool:
        return bool(lost_state(self.simulator.sawyer.data.warning.number))

    def render(self) -> Any:
        return self.simulator.sawyer.render()

    def close(self) -> None:
        self.simulator.sawyer.close()


def _make_again(task: int, tasks: MetaWorldTasks, options: dict[str, Any]) -> MetaWorldEnv:
    return MetaWorldEnv(task, **asdict(tasks), **options)


def _reveal(observation_BS: Floats, goal_BG: Floats) -> NDArray[np.float64]:
    shown_BS = observation_BS.astype(np.float64)
    shown_BS[:, -GOAL_DIM:] = goal_BG
    return shown_BS


def meta_world_family(
    tasks: MetaWorldTasks,
    gymnasium_id: str,
    validation_tasks: tuple[int, ...],
    test_tasks: tuple[int, ...],
    horizon: int = STANDARD_HORIZON,
    target_return: float = STANDARD_TARGET_RETURN,
    episodes_per_task: int = 100,
) -> TaskFamily:
    """Return the family of `tasks`; what is in no other split is a training task, returns are scaled by the target."""
    held_out = {*validation_tasks, *test_tasks}
    return TaskFamily(
        name=tasks.family,
        gymnasium_id=gymnasium_id,
        entry_point=MetaWorldEnv,
        observation_dim=OBSERVATION_DIM,
        action_dim=ACTION_DIM,
        horizon=horizon,
        train_tasks=tuple(task for task in range(NUM_GOALS * len(tasks.classes)) if task not in held_out),
        validation_tasks=validation_tasks,
        test_tasks=test_tasks,
        target_return=target_return,
        return_scale=target_return,
        goal=tasks.goal,
        label=tasks.label,
        expert=ScriptedExpert(controller=tasks.controller, reveal=_reveal),
        make_options=asdict(tasks),
        episodes_per_task=episodes_per_task,
        max_simulators=16,
        has_success=True,
        random_start=False,
    )


def unseen_class_family(
    name: str, gymnasium_id: str, train_classes: tuple[str, ...], test_classes: tuple[str, ...]
) -> TaskFamily:
    """Return the family of a benchmark whose test tasks are classes of their own; `name` is also the benchmark's.

    Validation tasks are the last five goals of each training class: classes are too few to set some aside.
    """
    num_train_tasks = NUM_GOALS * len(train_classes)
    return meta_world_family(
        MetaWorldTasks(name, name, (*train_classes, *test_classes)),
        gymnasium_id,
        validation_tasks=tuple(task for task in range(num_train_tasks) if task % NUM_GOALS >= NUM_GOALS - 5),
        test_tasks=tuple(range(num_train_tasks, num_train_tasks + NUM_GOALS * len(test_classes))),
        episodes_per_task=10,  # fewer than of other families, as the tasks are many
    )


def draw_tasks() -> dict[str, NDArray[np.float64]]:
    """Draw the random vectors with metaworld and compute their goals; takes minutes.

    Returns:
        "benchmark/class" -> vectors (50, 3 or 6) and "benchmark/class/goal" -> goal positions (50, 3).
    """
    import metaworld

    drawn: dict[str, list[Any]] = {"ml1": [], "ml10": [], "ml45": []}
    for class_name in ("pick-place-v3", "reach-v3"):
        drawn["ml1"] += metaworld.ML1(class_name, seed=BENCHMARK_SEED).train_tasks
    for name, benchmark in (("ml10", metaworld.ML10), ("ml45", metaworld.ML45)):
        both = benchmark(seed=BENCHMARK_SEED)
        drawn[name] += [*both.train_tasks, *both.test_tasks]
    tables: dict[str, NDArray[np.float64]] = {}
    for name, tasks in drawn.items():
        for class_name in dict.fromkeys(task.env_name for task in tasks):
            simulator = Simulator(class_name)
            vectors = [pickle.loads(task.data)["rand_vec"] for task in tasks if task.env_name == class_name]
            goals = []
            for vector in vectors:
                simulator.reset(vector)
                goals.append(simulator.goal())
            tables[f"{name}/{class_name}"] = np.array(vectors, np.float64)
            tables[f"{name}/{class_name}/goal"] = np.array(goals, np.float64)
    return tables


if __name__ == "__main__":
    save_file(draw_tasks(), TASKS_FILE)
