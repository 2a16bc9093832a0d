"""walker-params: Walker2d with randomised body parameters, 50 tasks.

Frames a step, horizon and return scale follow Meta-DT (NJU-RL/Meta-DT at a047a85, configs/args_walker*.py). See
body_params.py for the bodies.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptdiffuser.tasks.families import body_params
from promptdiffuser.tasks.family import Goal, TaskFamily, register
from promptdiffuser.tasks.mujoco_env import Doubles

NUM_EXPONENTS = 65
"""8 masses, 24 inertias, 9 dampings, 24 friction coefficients."""


class WalkerParamsEnv(body_params.BodyParamsEnv):
    """The robot of gymnasium's walker2d_v5.xml with a body drawn a task.

    Meta-DT does not publish its walker as source, so surviving is rewarded and falling ends the episode as in
    rand_param_envs (walker2d_rand_params.py): height within 0.8 to 2 m, pitch within 1 rad.
    """

    family = "walker-params"
    survival_reward = 1.0

    def __init__(self, task: int, **kwargs: Any) -> None:
        """Make the environment of task `task` (0 to 49); other arguments go to gymnasium's MujocoEnv."""
        super().__init__(task, "walker2d_v5.xml", 5, **kwargs)

    @staticmethod
    def has_fallen(positions: Doubles) -> NDArray[np.bool_]:
        height, pitch = positions[..., 1], positions[..., 2]
        fallen: NDArray[np.bool_] = ~((height > 0.8) & (height < 2.0) & (np.abs(pitch) < 1.0))
        return fallen


def _goal(task: int) -> Goal:
    return body_params.exponents("walker-params", task, NUM_EXPONENTS)


FAMILY = register(
    TaskFamily(
        name="walker-params",
        gymnasium_id="PromptDiffuser/WalkerParams-v0",
        entry_point=WalkerParamsEnv,
        observation_dim=17,
        action_dim=6,
        horizon=body_params.HORIZON,
        train_tasks=body_params.TRAIN_TASKS,
        validation_tasks=body_params.VALIDATION_TASKS,
        test_tasks=body_params.TEST_TASKS,
        # The highest expert return of a training task; LPDT asks for 1,500 of other bodies, which no expert here
        # reaches.
        target_return=335.0,
        return_scale=500.0,
        goal=_goal,
        label=lambda task: f"body {task}",
        expert=body_params.BODY_PARAMS_EXPERT,
        episodes_per_task=999,  # as in the released HalfCheetah data
        terminates=True,
    ),
    place=100,
)
