"""hopper-params: Hopper with randomised body parameters, 50 tasks.

Frames a step, horizon and return scale follow Meta-DT (NJU-RL/Meta-DT at a047a85, configs/args_hopper*.py). See
body_params.py for the bodies.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptdiffuser.tasks.families import body_params
from promptdiffuser.tasks.family import Goal, TaskFamily, register
from promptdiffuser.tasks.mujoco_env import Doubles

NUM_EXPONENTS = 41
"""5 masses, 15 inertias, 6 dampings, 15 friction coefficients."""


class HopperParamsEnv(body_params.BodyParamsEnv):
    """The robot of gymnasium's hopper.xml with a body drawn a task.

    As in Meta-DT there is no reward for surviving, and an episode goes on when the robot has fallen.
    """

    family = "hopper-params"
    survival_reward = 0.0

    def __init__(self, task: int, **kwargs: Any) -> None:
        """Make the environment of task `task` (0 to 49); other arguments go to gymnasium's MujocoEnv."""
        super().__init__(task, "hopper.xml", 4, **kwargs)

    @staticmethod
    def has_fallen(positions: Doubles) -> NDArray[np.bool_]:
        return np.zeros(positions.shape[:-1], bool)


def _goal(task: int) -> Goal:
    return body_params.exponents("hopper-params", task, NUM_EXPONENTS)


FAMILY = register(
    TaskFamily(
        name="hopper-params",
        gymnasium_id="PromptDiffuser/HopperParams-v0",
        entry_point=HopperParamsEnv,
        observation_dim=11,
        action_dim=3,
        horizon=body_params.HORIZON,
        train_tasks=body_params.TRAIN_TASKS,
        validation_tasks=body_params.VALIDATION_TASKS,
        test_tasks=body_params.TEST_TASKS,
        # The highest expert return of a training task; LPDT asks for 1,000 of other bodies, which no expert here
        # reaches.
        target_return=388.0,
        return_scale=500.0,
        goal=_goal,
        label=lambda task: f"body {task}",
        expert=body_params.BODY_PARAMS_EXPERT,
        episodes_per_task=999,  # as in the released HalfCheetah data
    ),
    place=90,
)
