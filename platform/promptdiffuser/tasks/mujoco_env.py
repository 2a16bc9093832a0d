"""MuJoCo environments that step together: one call of the simulator a row, all that follows from it on arrays.

The environments' own `step` remains gymnasium's and is the reference: a test over all families holds the two equal. On
one core a batch of HalfCheetah steps 1.3 times as fast as a loop over `step`, and, rewards and observations counted, as
fast as `mujoco.rollout`, which gives neither contact forces nor positions of bodies (`python -m tests.benchmarks
physics`).

Axes: B environments, A action, S observation, X whatever a reading holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv
from numpy.typing import NDArray

from promptdiffuser.tasks.family import BatchStep, Floats, TaskEnv

Doubles = NDArray[np.float64]

# MuJoCo meets a state that is not finite or huge with a warning and a silent reset to the model's initial state.
_RESETTING_WARNINGS = [
    int(warning)
    for warning in (
        mujoco.mjtWarning.mjWARN_BADQPOS,
        mujoco.mjtWarning.mjWARN_BADQVEL,
        mujoco.mjtWarning.mjWARN_BADQACC,
    )
]


def lost_state(warnings: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Tell from MuJoCo's counts of warnings since a reset, (..., 8), whether the state was replaced by the initial."""
    return np.asarray(warnings[..., _RESETTING_WARNINGS].any(axis=-1))


@dataclass(frozen=True)
class Outcome:
    """What a family makes of one step of B environments."""

    observations_BS: Floats
    rewards_B: Doubles
    terminated_B: NDArray[np.bool_]


class MujocoTaskEnv(MujocoEnv, TaskEnv):
    """A MuJoCo environment of a family; a subclass is a gymnasium environment that knows `place` and `outcome`.

    Its observation begins with the positions, but for the coordinates of `place`, and the velocities.
    """

    observation_is_state = True
    uses_contact_forces = False
    """Whether `readings` holds forces, which MuJoCo computes when asked alone."""

    def place(self) -> Doubles:
        """Return a view of where the robot is, (X,), by which its velocity is measured."""
        raise NotImplementedError

    def readings(self) -> tuple[Doubles, ...]:
        """Return views of the simulator's state that `outcome` needs, each of the same shape in every environment."""
        raise NotImplementedError

    @classmethod
    def outcome(
        cls,
        envs: Sequence[Any],
        velocity_BX: Doubles,
        readings: Sequence[Doubles],
        actions_BA: Floats,
    ) -> Outcome:
        """Return what the step showed and earned.

        Args:
            envs: The environments, for their goals.
            velocity_BX: Mean velocity of `place` over the step, in units a second.
            readings: What `readings` shows after the step, each with a leading axis of environments.
            actions_BA: The actions taken.
        """
        raise NotImplementedError

    def restore(self, observation_S: NDArray[Any]) -> None:
        """Begin at the state that an observation shows.

        The world is the same at every place, so where the observation hides it the robot stands at the origin. What
        MuJoCo keeps to start its solvers from is not observed: steps agree to the solvers' tolerance. Velocities that
        the observation clips are begun with as clipped.
        """
        num_hidden = len(self.place())
        hidden, shown = np.zeros(num_hidden), self.model.nq - num_hidden
        mujoco.mj_resetData(self.model, self.data)
        self.set_state(
            np.concatenate([hidden, observation_S[:shown]]), observation_S[shown : shown + self.model.nv].astype(float)
        )

    @property
    def diverged(self) -> bool:
        return bool(lost_state(self.data.warning.number))

    @classmethod
    def step_together(cls, envs: Sequence[Any], actions_BA: Floats) -> BatchStep:
        views = [env.views for env in envs]
        before_BX = np.array([view[0] for view in views])
        for env, (_, control, *_), action_A in zip(envs, views, actions_BA, strict=True):
            control[:] = action_A
            mujoco.mj_step(env.model, env.data, env.frame_skip)
            if cls.uses_contact_forces:
                mujoco.mj_rnePostConstraint(env.model, env.data)
        velocity_BX = (np.array([view[0] for view in views]) - before_BX) / envs[0].dt
        readings = [np.array(of_all) for of_all in zip(*(view[3] for view in views), strict=True)]
        outcome = cls.outcome(envs, velocity_BX, readings, actions_BA)
        return BatchStep(
            observations_BS=outcome.observations_BS,
            rewards_B=outcome.rewards_B,
            terminated_B=outcome.terminated_B,
            successes_B=np.zeros(len(envs), bool),
            diverged_B=lost_state(np.array([view[2] for view in views])),
        )

    @cached_property
    def views(self) -> tuple[Doubles, Doubles, NDArray[np.int32], tuple[Doubles, ...]]:
        """Views of place, controls, warnings and readings, kept because MuJoCo makes them anew at every access."""
        return self.place(), self.data.ctrl, self.data.warning.number, self.readings()
