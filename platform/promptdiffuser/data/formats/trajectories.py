"""What every reader of a foreign format does with the steps it found: check them and make them `Episodes`.

Axes: N episodes, L steps of an episode, T the family's horizon, S observation, A action.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.errors import UserError
from promptdiffuser.rng import SIMULATOR_SEEDS, seed_at
from promptdiffuser.tasks.family import TaskFamily

Numbers = NDArray[np.number] | NDArray[np.bool_]


@dataclass(frozen=True)
class Trajectory:
    """One episode as another format holds it, of its own length and number type."""

    number: int
    """Its number in its file."""
    observations: Numbers
    """(L, S) before each action."""
    actions: Numbers
    """(L, A)."""
    rewards: Numbers
    """(L,)."""
    seed: int | None = None
    """Seed of the reset; None where the format does not know it."""
    success: bool = False
    """False where the format does not know."""


def assemble(source: str, family: TaskFamily, task: int, trajectories: Sequence[Trajectory]) -> Episodes:
    """Return trajectories of one task as `Episodes`, filled up with zeros to the family's horizon.

    Actions beyond [-1, 1] are clipped, as the families' environments and the stepping engine do before they use them.
    An episode without a seed, or with one that no simulator takes, gets one that depends on the task and its number.

    Args:
        source: Where they come from, for errors.
        family: The family that they must fit.
        task: Task id.
        trajectories: At least one.

    Raises:
        UserError: The family has no such task, there is no episode, dimensions or lengths are not the family's, or a
            number is not finite in single precision.
    """
    if task not in family.tasks:
        raise UserError(f"{source}: {family.name} has no task {task}")
    if not trajectories:
        raise UserError(f"{source} holds no complete episode")
    num, horizon = len(trajectories), family.horizon
    lengths = np.array([len(trajectory.rewards) for trajectory in trajectories], np.int64)
    for trajectory, length in zip(trajectories, lengths.tolist(), strict=True):
        _check(f"{source}, episode {trajectory.number}", family, trajectory, length)
    observations = np.zeros((num, horizon, family.observation_dim), np.float32)
    actions = np.zeros((num, horizon, family.action_dim), np.float32)
    rewards = np.zeros((num, horizon), np.float32)
    for row, (trajectory, length) in enumerate(zip(trajectories, lengths.tolist(), strict=True)):
        observations[row, :length] = trajectory.observations
        actions[row, :length] = np.clip(trajectory.actions, -1.0, 1.0)
        rewards[row, :length] = trajectory.rewards
    return Episodes(
        tasks=np.full(num, task, np.int64),
        seeds=np.array([_seed(task, trajectory) for trajectory in trajectories], np.int64),
        lengths=lengths,
        successes=np.array([trajectory.success for trajectory in trajectories], bool),
        observations=observations,
        actions=actions,
        rewards=rewards,
    )


def _seed(task: int, trajectory: Trajectory) -> int:
    seed = trajectory.seed
    if seed is None or not 0 <= seed <= np.iinfo(np.int64).max:
        return seed_at("imported", task, trajectory.number) % SIMULATOR_SEEDS
    return seed


def _check(place: str, family: TaskFamily, trajectory: Trajectory, length: int) -> None:
    if not 1 <= length <= family.horizon:
        raise UserError(f"{place} has {length} steps, episodes of {family.name} have 1 to {family.horizon}")
    shapes = {
        "observations": (length, family.observation_dim),
        "actions": (length, family.action_dim),
        "rewards": (length,),
    }
    for name, shape in shapes.items():
        values: Numbers = getattr(trajectory, name)
        if values.shape != shape:
            raise UserError(f"{place}: {name} have shape {values.shape}, {family.name} needs {shape}")
        with np.errstate(over="ignore"):  # what single precision cannot hold becomes infinite and is refused below
            finite = np.isfinite(values.astype(np.float32))
        if not finite.all():
            raise UserError(f"{place}: {name} are not finite at step {int(np.argwhere(~finite)[0][0])}")
