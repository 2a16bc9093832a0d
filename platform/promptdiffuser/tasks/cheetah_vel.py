"""cheetah-vel: HalfCheetah rewarded for running at a goal velocity, 40 tasks.

Constants follow the official Prompt-DT release (mxu34/prompt-dt at 5f665e5): observation and reward from
envs/mujoco-control-envs/mujoco_control_envs/tp_envs/half_cheetah*.py, splits and velocities from
config/cheetah_vel/cheetah_vel_40.json, scale and target from prompt_dt/prompt_utils.py `gen_env`.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.spaces import Box

from promptdiffuser.errors import UserError
from promptdiffuser.tasks.family import Floats, TaskFamily

NUM_TASKS = 40
CONTROL_COST = 0.05
TEST_TASKS = (2, 7, 15, 23, 26)
# Set aside from the published 35 training tasks so that nothing is ever chosen on test tasks: spread over the range,
# none of them an end of it.
VALIDATION_TASKS = (4, 11, 19, 29, 36)
PROPRIOCEPTION_DIM = 17


def goal_velocity(task: int) -> float:
    """Return the goal velocity of a task, 0.075 to 3.0 m/s in steps of 0.075."""
    return 0.075 * (task + 1)


class CheetahVelEnv(HalfCheetahEnv):
    """HalfCheetah with the goal velocity hidden from the observation.

    Observation (20, float32): joint positions without the root's x (8), velocities (9), torso position x, y, z (3).
    Action (6, float32) in [-1, 1]. Reward: -|v - v_goal| - 0.05 |a|^2 with v the root's mean velocity over the step
    of 0.05 s. Episodes never terminate; the horizon is 200 steps.
    """

    def __init__(self, task: int, **kwargs: Any) -> None:
        """Make the environment of task `task` (0 to 39); other arguments go to gymnasium's HalfCheetah."""
        if not 0 <= task < NUM_TASKS:
            raise UserError(f"cheetah-vel has no task {task}; its tasks are 0 to {NUM_TASKS - 1}")
        self.goal = goal_velocity(task)
        super().__init__(**kwargs)
        self._ezpickle_args: tuple[int, ...] = (task,)
        self._ezpickle_kwargs: dict[str, Any] = kwargs
        self.observation_space = Box(-np.inf, np.inf, (PROPRIOCEPTION_DIM + 3,), np.float32)

    def _get_obs(self) -> Floats:
        torso = self.data.body("torso").xpos
        return np.concatenate([self.data.qpos[1:], self.data.qvel, torso]).astype(np.float32)

    def _get_rew(self, x_velocity: float, action: Floats) -> tuple[float, dict[str, float]]:
        velocity_error = abs(x_velocity - self.goal)
        control_cost = CONTROL_COST * float(np.square(action).sum())
        parts = {"reward_velocity": -velocity_error, "reward_ctrl": -control_cost}
        return -velocity_error - control_cost, parts


def expert_features(observation_BS: Floats, goal_B: Floats) -> Floats:
    """Return joint positions, velocities and the goal: the torso's absolute position tells an expert nothing."""
    return np.concatenate([observation_BS[:, :PROPRIOCEPTION_DIM], goal_B[:, None]], axis=1)


_held_out = {*TEST_TASKS, *VALIDATION_TASKS}

FAMILY = TaskFamily(
    name="cheetah-vel",
    gymnasium_id="PromptDiffuser/CheetahVel-v0",
    observation_dim=PROPRIOCEPTION_DIM + 3,
    action_dim=6,
    horizon=200,
    train_tasks=tuple(task for task in range(NUM_TASKS) if task not in _held_out),
    validation_tasks=VALIDATION_TASKS,
    test_tasks=TEST_TASKS,
    target_return=0.0,
    return_scale=500.0,
    goal=goal_velocity,
    goal_unit="m/s",
    expert_features=expert_features,
)


def register() -> None:
    """Register the family with Gymnasium; safe to call again."""
    if FAMILY.gymnasium_id not in gymnasium.registry:
        gymnasium.register(
            FAMILY.gymnasium_id, entry_point=f"{__name__}:CheetahVelEnv", max_episode_steps=FAMILY.horizon
        )
