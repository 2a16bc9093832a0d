"""Walking robots whose bodies differ from task to task, the same 50 bodies on every machine.

The distribution follows rand_param_envs (dennisl88/rand_param_envs, rand_param_envs/base.py) as Meta-DT uses it
(NJU-RL/Meta-DT at a047a85, src/tp_envs/environments/mujoco/rand_param_envs/hopper_rand_params.py): every number of the
bodies' masses, inertias and friction coefficients is multiplied by 1.5^u, of the joints' dampings by 1.3^u, u uniform
in [-3, 3] and independent. The bodies themselves are drawn here, Meta-DT publishes none.

Axes: B episodes, S observation, G exponents.
"""

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from promptdiffuser.rng import numpy_generator
from promptdiffuser.tasks.family import Floats, Goal, LearnedExpert, check_task
from promptdiffuser.tasks.mujoco_env import Doubles, MujocoTaskEnv, Outcome

NUM_TASKS = 50
HORIZON = 200
EXPONENT_LIMIT = 3.0
BASES = {"body_mass": 1.5, "body_inertia": 1.5, "dof_damping": 1.3, "geom_friction": 1.5}
CONTROL_COST = 1e-3
VELOCITY_LIMIT = 10.0
"""Velocities are clipped to this in the observation (gymnasium Hopper-v5 and Walker2d-v5)."""
# The last five tasks are the test tasks, as in Meta-DT's 45 to 5; the validation tasks are spread over the rest.
TEST_TASKS = (45, 46, 47, 48, 49)
VALIDATION_TASKS = (4, 13, 22, 31, 40)
TRAIN_TASKS = tuple(task for task in range(NUM_TASKS) if task not in {*TEST_TASKS, *VALIDATION_TASKS})


class BodyParamsEnv(MujocoTaskEnv):
    """A planar robot of `nq` coordinates that runs forwards with a body that the observation does not show.

    Observation (2 nq - 1, float32): positions without x, velocities clipped to +-10. Action in [-1, 1]. Reward: the
    root's velocity (m/s) - 0.001 |a|^2 + the reward for surviving. The episode ends when the robot has fallen.
    """

    family: str
    """Name of the family, part of the address that its bodies are drawn at."""
    survival_reward: float
    """Reward of every step."""

    @staticmethod
    def has_fallen(positions: Doubles) -> NDArray[np.bool_]:
        """Tell from positions (..., Q) whether an episode ends here."""
        raise NotImplementedError

    def __init__(self, task: int, xml_file: str, frame_skip: int, **kwargs: Any) -> None:
        """Make the environment of task `task` (0 to 49); other arguments go to gymnasium's MujocoEnv."""
        self.metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"]}
        super().__init__(xml_file, frame_skip, None, **kwargs)
        self.metadata["render_fps"] = round(1 / self.dt)
        self.observation_space = Box(-np.inf, np.inf, (2 * self.model.nq - 1,), np.float32)
        self._options = kwargs
        self._nominal = {name: getattr(self.model, name).copy() for name in BASES}
        self.set_task(task)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the constructor's arguments."""
        return _make_again, (type(self), self.task, self._options)

    def set_task(self, task: int) -> None:
        check_task(self.family, task, NUM_TASKS)
        self.task = task
        remaining = np.array(exponents(self.family, task, sum(value.size for value in self._nominal.values())))
        for name, nominal in self._nominal.items():
            drawn, remaining = remaining[: nominal.size], remaining[nominal.size :]
            getattr(self.model, name)[:] = nominal * BASES[name] ** drawn.reshape(nominal.shape)
        # MuJoCo derives constants from the masses (of subtrees, of joints); left stale they would belong to no body.
        mujoco.mj_setConst(self.model, self.data)

    def reset_model(self) -> Any:
        noise = [self.np_random.uniform(-0.005, 0.005, size) for size in (self.model.nq, self.model.nv)]
        self.set_state(self.init_qpos + noise[0], self.init_qvel + noise[1])
        return self._get_obs()

    def step(self, action: Floats) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        before = float(self.data.qpos[0])
        self.do_simulation(action, self.frame_skip)
        parts = {
            "reward_velocity": float(self.data.qpos[0] - before) / self.dt,
            "reward_ctrl": -CONTROL_COST * float(np.square(action, dtype=np.float64).sum()),
            "reward_survive": self.survival_reward,
        }
        if self.render_mode == "human":
            self.render()
        return self._get_obs(), sum(parts.values()), bool(self.has_fallen(self.data.qpos)), False, parts

    def place(self) -> Doubles:
        return self.data.qpos[:1]  # type: ignore[no-any-return]

    def readings(self) -> tuple[Doubles, ...]:
        return self.data.qpos, self.data.qvel

    @classmethod
    def outcome(
        cls, envs: Sequence[Any], velocity_BX: Doubles, readings: Sequence[Doubles], actions_BA: Floats
    ) -> Outcome:
        positions_BQ, velocities_BV = readings
        return Outcome(
            observations_BS=_observation(positions_BQ, velocities_BV),
            rewards_B=velocity_BX[:, 0]
            - CONTROL_COST * np.square(actions_BA, dtype=np.float64).sum(axis=1)
            + cls.survival_reward,
            terminated_B=cls.has_fallen(positions_BQ),
        )

    def _get_obs(self) -> Floats:
        return _observation(self.data.qpos, self.data.qvel)


def _observation(positions: Doubles, velocities: Doubles) -> Floats:
    clipped = np.clip(velocities, -VELOCITY_LIMIT, VELOCITY_LIMIT)
    return np.concatenate([positions[..., 1:], clipped], axis=-1).astype(np.float32)


def _make_again(cls: type[BodyParamsEnv], task: int, options: dict[str, Any]) -> BodyParamsEnv:
    return cls(task, **options)


def exponents(family: str, task: int, count: int) -> Goal:
    """Return the exponents u of a task's body, in the order of `BASES`."""
    generator = numpy_generator(0, family, "body", task)
    return tuple(generator.uniform(-EXPONENT_LIMIT, EXPONENT_LIMIT, count).tolist())


def _features(observation_BS: Floats, goal_BG: Floats) -> Floats:
    return np.concatenate([observation_BS, goal_BG], axis=1)


BODY_PARAMS_EXPERT = LearnedExpert(_features)
