"""The HalfCheetah of the published task families: observation, start and control cost, without a forward reward.

Constants follow the official Prompt-DT release (mxu34/prompt-dt at 5f665e5,
envs/mujoco-control-envs/mujoco_control_envs/tp_envs/half_cheetah.py). Axes: B episodes, S observation, G goal.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.spaces import Box
from numpy.typing import NDArray

from promptdiffuser.tasks.family import Floats, LearnedExpert
from promptdiffuser.tasks.mujoco_env import Doubles, MujocoTaskEnv, Outcome

CONTROL_COST = 0.05
PROPRIOCEPTION_DIM = 17
OBSERVATION_DIM = PROPRIOCEPTION_DIM + 3
ACTION_DIM = 6
HORIZON = 200


class CheetahEnv(MujocoTaskEnv, HalfCheetahEnv):
    """HalfCheetah with a hidden goal.

    Observation (20, float32): joint positions without the root's x (8), velocities (9), torso position x, y, z (3).
    Action (6, float32) in [-1, 1]. Reward: what the family gives for the root's mean velocity over the step of 0.05 s,
    minus 0.05 |a|^2. Episodes never terminate.
    """

    goal: float

    def __init__(self, task: int, **kwargs: Any) -> None:
        """Make the environment of a task; other arguments go to gymnasium's HalfCheetah."""
        super().__init__(**kwargs)
        self._ezpickle_kwargs: dict[str, Any] = kwargs
        self.set_task(task)
        self.observation_space = Box(-np.inf, np.inf, (OBSERVATION_DIM,), np.float32)

    def set_task(self, task: int) -> None:
        self._ezpickle_args: tuple[int, ...] = (task,)

    @staticmethod
    def velocity_reward(velocity: Any, goal: Any) -> Any:
        """Return the reward for the root's velocity, m/s, of one environment or an array."""
        raise NotImplementedError

    def place(self) -> Doubles:
        return self.data.qpos[:1]  # type: ignore[no-any-return]

    def restore(self, observation_S: NDArray[Any]) -> None:
        """Begin at the state that an observation shows.

        The torso's position is observed as MuJoCo leaves it, one substep of its Euler integrator behind the joints.
        """
        super().restore(observation_S)
        substep = self.model.opt.timestep * self.data.qvel[0]
        self.data.qpos[0] = observation_S[PROPRIOCEPTION_DIM] + substep

    def readings(self) -> tuple[Doubles, ...]:
        return self.data.qpos[1:], self.data.qvel, self.data.body("torso").xpos

    @classmethod
    def outcome(
        cls, envs: Sequence[Any], velocity_BX: Doubles, readings: Sequence[Doubles], actions_BA: Floats
    ) -> Outcome:
        return Outcome(
            observations_BS=np.concatenate(readings, axis=1).astype(np.float32),
            rewards_B=cls.velocity_reward(velocity_BX[:, 0], np.array([env.goal for env in envs]))
            - CONTROL_COST * np.square(actions_BA, dtype=np.float64).sum(axis=1),
            terminated_B=np.zeros(len(envs), bool),
        )

    def _get_obs(self) -> Floats:
        return np.concatenate(self.readings()).astype(np.float32)

    def _get_rew(self, x_velocity: float, action: Floats) -> tuple[float, dict[str, float]]:
        velocity_reward = self.velocity_reward(x_velocity, self.goal)
        control_cost = CONTROL_COST * float(np.square(action, dtype=np.float64).sum())
        parts = {"reward_velocity": velocity_reward, "reward_ctrl": -control_cost}
        return velocity_reward - control_cost, parts


def _features(observation_BS: Floats, goal_BG: Floats) -> Floats:
    return np.concatenate([observation_BS[:, :PROPRIOCEPTION_DIM], goal_BG], axis=1)


# Joint positions, velocities and the goal: the torso's absolute position tells an expert nothing.
CHEETAH_EXPERT = LearnedExpert(_features)
