"""What the platform needs to know about a family of tasks.

Axes: B episodes, S observation, G numbers of a goal, F features of a learned expert.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from promptdiffuser.errors import UserError
from promptdiffuser.registry import LAST, Registry

Floats = NDArray[np.float32]
Goal = tuple[float, ...]
Controller = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class BatchStep:
    """One step of B environments."""

    observations_BS: Floats
    rewards_B: NDArray[np.float64]
    terminated_B: NDArray[np.bool_]
    successes_B: NDArray[np.bool_]
    """Whether the task is solved now; False where the family does not say what success is."""
    diverged_B: NDArray[np.bool_]
    """Whether the simulator lost the state and began another one, which ends the episode without a result."""


class TaskEnv(gymnasium.Env[Floats, Floats]):
    """An environment of a family: made for one task, it can become any other without being made again."""

    observation_is_state = False
    """Whether an observation says all that the next step and its reward depend on, besides the task."""

    def set_task(self, task: int) -> None:
        """Become another task; takes effect with the next `reset`."""
        raise NotImplementedError

    def restore(self, observation_S: NDArray[Any]) -> None:
        """Begin at the state that an observation shows; for environments whose observation is the state."""
        raise NotImplementedError

    @property
    def diverged(self) -> bool:
        """Whether the simulator lost the episode's state since the last `reset`."""
        raise NotImplementedError

    @classmethod
    def step_together(cls, envs: "Sequence[Any]", actions_BA: Floats) -> BatchStep:
        """Step environments of this class, each by its own action; the same as a call of each one's `step`."""
        steps = [env.step(action_A) for env, action_A in zip(envs, actions_BA, strict=True)]
        observations, rewards, terminated, _, infos = zip(*steps, strict=True)
        return BatchStep(
            observations_BS=np.array(observations),
            rewards_B=np.array(rewards, np.float64),
            terminated_B=np.array(terminated, bool),
            successes_B=np.array([info.get("success", False) for info in infos], bool),
            diverged_B=np.array([env.diverged for env in envs], bool),
        )


@dataclass(frozen=True)
class LearnedExpert:
    """The family's experts are networks that `jobs/experts.py` trained, told the goal of each episode."""

    features: Callable[[Floats, Floats], Floats]
    """(observation_BS, goal_BG) -> what the network reads, shape (B, F)."""
    actions: Callable[[Floats, Floats], Floats] = lambda output_BA, goal_BG: output_BA
    """(output_BA, goal_BG) -> the actions that the network's output means, shape (B, A)."""


@dataclass(frozen=True)
class ScriptedExpert:
    """The family's experts are hand-written controllers that see the goal which the observation hides."""

    controller: Callable[[int], Controller]
    """Task id -> a new controller: observation (S,) with the goal shown -> action (A,), unclipped."""
    reveal: Callable[[Floats, Floats], NDArray[np.float64]]
    """(observation_BS, goal_BG) -> the observations with the goals shown, shape (B, S)."""


@dataclass(frozen=True)
class TaskFamily:
    """A set of tasks that share observation space, action space and horizon and differ in their goal.

    The backbone and the diffuser learn from `train_tasks`, sweeps and early stopping see `validation_tasks`, and
    `test_tasks` are touched by the final evaluation alone. The three are disjoint unless `tests_on_training_tasks`.
    """

    name: str
    gymnasium_id: str
    entry_point: Callable[..., TaskEnv]
    """The environment's class; called with the task and `make_options`."""
    observation_dim: int
    action_dim: int
    horizon: int
    """Steps after which an episode is cut."""
    train_tasks: tuple[int, ...]
    validation_tasks: tuple[int, ...]
    test_tasks: tuple[int, ...]
    target_return: float
    """Return asked of the policy at the first step of an evaluation episode, in the unit of the reward.

    The published one, unless it lies far from the highest return of the shipped expert on a training task; then it is
    that return, rounded (docs/tasks.md)."""
    return_scale: float
    """Returns-to-go are divided by this before the backbone sees them."""
    goal: Callable[[int], Goal]
    """Task id -> the numbers that define the task and that the observation hides."""
    label: Callable[[int], str]
    """Task id -> the task in words, with units, for tables and figures."""
    expert: LearnedExpert | ScriptedExpert
    expert_of: str = ""
    """Family whose expert weights serve here too, as the tasks are the same."""
    make_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the environment besides the task."""
    episodes_per_task: int = 100
    """Episodes of each task in the recipe of the published size; where none is published, as many as Meta-World's data
    in mengsong16/prompt_dt (gen_ml1_datasets.py)."""
    max_simulators: int = 256
    """Most simulators that one process should hold, for their memory."""
    terminates: bool = False
    """Whether an episode can end before the horizon."""
    has_success: bool = False
    """Whether the environment says in `info["success"]` that the task is solved."""
    random_start: bool = True
    """Whether the seed of a reset decides where an episode starts; without it all episodes of a task start alike."""
    tests_on_training_tasks: bool = False
    """The published split has no held-out task: scores say nothing about unseen tasks."""
    extrapolation_tasks: tuple[int, ...] = ()
    """Test tasks whose goal lies outside the range of the training goals."""

    def __post_init__(self) -> None:
        """Check that every target task leaves a training task whose prompts are another task's."""
        for task in (*self.validation_tasks, *self.test_tasks):
            if not set(self.train_tasks) - {task}:
                raise ValueError(f"{self.name}: task {task} is the only training task and a target task too")

    @property
    def caution(self) -> str:
        """What a reader of test scores must know about the split; empty where there is nothing."""
        if self.tests_on_training_tasks:
            return "The published split tests on training tasks: scores say nothing about unseen tasks."
        if self.extrapolation_tasks:
            tasks = ", ".join(f"{task} ({self.label(task)})" for task in self.extrapolation_tasks)
            return f"Test tasks outside the range of the training goals: {tasks}; the others lie inside."
        return ""

    @property
    def tasks(self) -> tuple[int, ...]:
        """Every task id, ascending."""
        return tuple(sorted({*self.train_tasks, *self.validation_tasks, *self.test_tasks}))

    def register_environment(self) -> None:
        """Register the environment with Gymnasium, cut at the horizon; safe to call again."""
        if self.gymnasium_id not in gymnasium.registry:
            made_by = self.entry_point
            gymnasium.register(
                self.gymnasium_id,
                # By name: a specification that holds the class itself cannot be written as JSON.
                entry_point=f"{made_by.__module__}:{made_by.__qualname__}",
                max_episode_steps=self.horizon,
                kwargs=dict(self.make_options),
            )

    def make(self, task: int, **options: Any) -> TaskEnv:
        """Return the bare environment of one task; its `step` never truncates, the caller counts to `horizon`."""
        return self.entry_point(task=task, **self.make_options, **options)


FAMILIES: Registry[TaskFamily] = Registry("task family")


def register(family: TaskFamily, place: int = LAST) -> TaskFamily:
    """Make a family known by its name, and its environment to Gymnasium, and return it.

    Args:
        family: The family.
        place: Where it stands in tables and lists.

    Raises:
        UserError: The name is taken.
    """
    FAMILIES.add(family.name, family, place)
    family.register_environment()
    return family


def check_task(family: str, task: int, num_tasks: int) -> None:
    """Raise a `UserError` unless a family of `num_tasks` tasks has this one."""
    if not 0 <= task < num_tasks:
        raise UserError(f"{family} has no task {task}; its tasks are 0 to {num_tasks - 1}")
