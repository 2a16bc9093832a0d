"""What the platform needs to know about a family of tasks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from promptdiffuser.errors import UserError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TaskFamily:
    """A set of tasks that share observation space, action space and horizon and differ in their goal.

    The three splits are disjoint: the backbone and the diffuser learn from `train_tasks`, sweeps and early stopping
    see `validation_tasks`, and `test_tasks` are touched by the final evaluation alone.
    """

    name: str
    gymnasium_id: str
    observation_dim: int
    action_dim: int
    horizon: int
    """Steps an episode lasts; episodes of the locomotion families never end earlier."""
    train_tasks: tuple[int, ...]
    validation_tasks: tuple[int, ...]
    test_tasks: tuple[int, ...]
    target_return: float
    """Return asked of the policy at the first step of an evaluation episode, in the unit of the reward."""
    return_scale: float
    """Returns-to-go are divided by this before the backbone sees them."""
    goal: Callable[[int], float]
    """Task id -> the number that defines the task (m/s for a velocity family)."""
    goal_unit: str
    expert_features: Callable[[Floats, Floats], Floats]
    """(observation_BS, goal_B) -> the inputs of the family's task-conditioned expert, shape (B, F)."""
    make_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[int, ...]:
        """Every task id, ascending."""
        return tuple(sorted((*self.train_tasks, *self.validation_tasks, *self.test_tasks)))

    def make(self, task: int) -> gymnasium.Env[Floats, Floats]:
        """Return the bare environment of one task; its `step` never truncates, the caller counts to `horizon`."""
        if task not in self.tasks:
            raise UserError(f"{self.name} has no task {task}; its tasks are {self.tasks[0]} to {self.tasks[-1]}")
        return gymnasium.make(self.gymnasium_id, task=task, **self.make_options).unwrapped
