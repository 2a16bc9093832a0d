"""cheetah-vel: HalfCheetah rewarded for running at a goal velocity, 40 tasks.

Constants follow the official Prompt-DT release (mxu34/prompt-dt at 5f665e5): reward from
envs/mujoco-control-envs/mujoco_control_envs/tp_envs/half_cheetah_vel.py, splits and velocities from
config/cheetah_vel/cheetah_vel_40.json, scale and target from prompt_dt/prompt_utils.py `gen_env`.
"""

from typing import Any

from promptdiffuser.tasks.families.cheetah import ACTION_DIM, CHEETAH_EXPERT, HORIZON, OBSERVATION_DIM, CheetahEnv
from promptdiffuser.tasks.family import Goal, TaskFamily, check_task, register

NUM_TASKS = 40
TEST_TASKS = (2, 7, 15, 23, 26)
# Set aside from the published 35 training tasks so that nothing is ever chosen on test tasks: spread over the range,
# none of them an end of it.
VALIDATION_TASKS = (4, 11, 19, 29, 36)


def goal_velocity(task: int) -> float:
    """Return the goal velocity of a task, 0.075 to 3.0 m/s in steps of 0.075."""
    return 0.075 * (task + 1)


class CheetahVelEnv(CheetahEnv):
    """Reward: -|v - v_goal| - 0.05 |a|^2 with v the root's velocity."""

    def set_task(self, task: int) -> None:
        check_task("cheetah-vel", task, NUM_TASKS)
        super().set_task(task)
        self.goal = goal_velocity(task)

    @staticmethod
    def velocity_reward(velocity: Any, goal: Any) -> Any:
        return -abs(velocity - goal)


def _goal(task: int) -> Goal:
    return (goal_velocity(task),)


_held_out = {*TEST_TASKS, *VALIDATION_TASKS}

FAMILY = register(
    TaskFamily(
        name="cheetah-vel",
        gymnasium_id="PromptDiffuser/CheetahVel-v0",
        entry_point=CheetahVelEnv,
        observation_dim=OBSERVATION_DIM,
        action_dim=ACTION_DIM,
        horizon=HORIZON,
        train_tasks=tuple(task for task in range(NUM_TASKS) if task not in _held_out),
        validation_tasks=VALIDATION_TASKS,
        test_tasks=TEST_TASKS,
        target_return=0.0,
        return_scale=500.0,
        goal=_goal,
        label=lambda task: f"{goal_velocity(task):.3g} m/s",
        expert=CHEETAH_EXPERT,
        episodes_per_task=999,  # as in the released HalfCheetah data
    ),
    place=20,
)
