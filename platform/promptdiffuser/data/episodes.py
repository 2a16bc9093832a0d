"""Episodes in memory: the form in which the stepping engine hands them on and the store writes them.

Axes: N episodes, T steps (the horizon; unused steps of a shorter episode are zero), S observation, A action.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Episodes:
    """A batch of episodes of any mix of tasks."""

    tasks: NDArray[np.int64]
    """(N,) task id."""
    seeds: NDArray[np.int64]
    """(N,) seed that the simulator was reset with, or one in its place. It addresses what is drawn from an episode, so
    episodes of a task and quality have different ones."""
    lengths: NDArray[np.int64]
    """(N,) steps until the episode ended."""
    successes: NDArray[np.bool_]
    """(N,) whether the task was solved at any step; False where the family does not say what success is."""
    observations: NDArray[np.float32]
    """(N, T, S) observation before each action, in the environment's units."""
    actions: NDArray[np.float32]
    """(N, T, A) actions as the environment received them."""
    rewards: NDArray[np.float32]
    """(N, T) reward after each action."""

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.tasks)

    @property
    def returns(self) -> NDArray[np.float64]:
        """(N,) undiscounted returns."""
        total: NDArray[np.float64] = self.rewards.sum(axis=1, dtype=np.float64)
        return total

    def returns_to_go(self) -> NDArray[np.float32]:
        """Return (N, T): the undiscounted sum of rewards from each step to the end of the episode."""
        reverse = np.cumsum(self.rewards[:, ::-1].astype(np.float64), axis=1)
        return reverse[:, ::-1].astype(np.float32)

    def select(self, rows: NDArray[np.intp] | NDArray[np.bool_] | slice) -> "Episodes":
        """Return the episodes at an index array, a mask or a slice."""
        return Episodes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @staticmethod
    def concatenate(parts: Sequence["Episodes"]) -> "Episodes":
        """Join batches of equal horizon and dimensions."""
        return Episodes(
            **{field.name: np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(Episodes)}
        )
