"""ant-dir: Ant rewarded for walking in a goal direction, 50 directions.

Constants follow the official Prompt-DT release (mxu34/prompt-dt at 5f665e5): observation, reward and start from
envs/mujoco-control-envs/mujoco_control_envs/tp_envs/ant_dir.py and assets/ant.xml, directions and split from
config/ant_dir/ant_dir_50.json, scale from prompt_dt/prompt_utils.py `gen_env`.

One reading is ours: the contact cost uses MuJoCo's real contact forces. Under the release's mujoco-py they were
reported as zero, as far as is known; the term is at most 0.042 a step.

Axes: B episodes, S observation, G goal.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.spaces import Box
from numpy.typing import NDArray

from promptdiffuser.tasks.family import Floats, Goal, LearnedExpert, TaskFamily, check_task, register
from promptdiffuser.tasks.mujoco_env import Doubles, MujocoTaskEnv, Outcome

# Radians, in the order of the published task ids.
DIRECTIONS = (
    *(1.203361, 0.426631, 4.944775, 4.123865, 4.005662, 3.616620, 0.245440, 2.248209, 5.941903, 0.377272),
    *(5.428937, 5.512179, 0.321659, 4.099267, 3.466756, 3.754286, 3.038100, 1.778067, 1.870666, 3.528065),
    *(2.488439, 4.955553, 2.629415, 0.904175, 0.948175, 0.347092, 4.511561, 1.836684, 1.248933, 5.223614),
    *(3.568793, 0.517356, 3.424327, 0.998767, 4.252223, 0.744383, 2.795993, 5.579358, 5.009381, 0.427123),
    *(6.036808, 4.141910, 4.516203, 4.672031, 5.577812, 0.841605, 4.881875, 5.265256, 5.210676, 0.183199),
)
TEST_TASKS = (6, 17, 23, 30, 41)
# Set aside from the published 45 training tasks: spread over the circle, none next to a test direction alone.
VALIDATION_TASKS = (0, 11, 20, 34, 46)
START_POSITION = (0.0, 0.0, 0.55, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0)
CONTROL_COST = 0.5
CONTACT_COST = 0.0005
SURVIVAL_REWARD = 1.0
HEALTHY_HEIGHTS = (0.2, 1.0)
OBSERVATION_DIM = 27
# Where the observation holds the torso's orientation (w, x, y, z), the angles of hip and ankle of the legs 1 to 4, the
# torso's velocity in the world's x and y, its spin about the body's x and y, and the velocities of the joints.
ORIENTATION, JOINT_ANGLES = slice(1, 5), slice(5, 13)
PLANAR_VELOCITY, PLANAR_SPIN, JOINT_VELOCITIES = slice(13, 15), slice(16, 18), slice(19, 27)
# ant.xml: the legs 1 to 4 stand a quarter turn apart, the ankles of 2 and 3 bend the other way round, and the actuators
# are those of the legs 4, 1, 2, 3.
LEG_SIGNS = np.array([[1, 1], [1, -1], [1, -1], [1, 1]], np.float32)
LEGS_OF_ACTUATORS = [3, 0, 1, 2]


class AntDirEnv(MujocoTaskEnv, AntEnv):
    """Ant with the goal direction hidden from the observation.

    Observation (27, float32): positions without x and y (13), velocities (14). Action (8, float32) in [-1, 1]. Reward:
    the torso's velocity (m/s) along the goal direction - 0.5 |a|^2 - 0.0005 |clip(contact forces, -1, 1)|^2 + 1. The
    episode ends when the state is not finite or the torso's height leaves 0.2 to 1.0 m.
    """

    uses_contact_forces = True

    def __init__(self, task: int, **kwargs: Any) -> None:
        """Make the environment of task `task` (0 to 49); other arguments go to gymnasium's Ant."""
        super().__init__(
            ctrl_cost_weight=CONTROL_COST,
            contact_cost_weight=CONTACT_COST,
            healthy_reward=SURVIVAL_REWARD,
            healthy_z_range=HEALTHY_HEIGHTS,
            include_cfrc_ext_in_observation=False,
            **kwargs,
        )
        self._ezpickle_kwargs: dict[str, Any] = kwargs
        self.init_qpos = np.array(START_POSITION)
        self.observation_space = Box(-np.inf, np.inf, (OBSERVATION_DIM,), np.float32)
        self.set_task(task)

    def set_task(self, task: int) -> None:
        check_task("ant-dir", task, len(DIRECTIONS))
        self._ezpickle_args: tuple[int, ...] = (task,)
        self.goal = DIRECTIONS[task]
        self.direction = np.array([np.cos(self.goal), np.sin(self.goal)])

    def step(self, action: Floats) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        before = self.data.body("torso").xpos[:2].copy()
        self.do_simulation(action, self.frame_skip)
        velocity = (self.data.body("torso").xpos[:2] - before) / self.dt
        parts = {
            "reward_velocity": float(velocity @ self.direction),
            "reward_ctrl": -CONTROL_COST * float(np.square(action, dtype=np.float64).sum()),
            "reward_contact": -float(self.contact_cost),
            "reward_survive": SURVIVAL_REWARD,
        }
        if self.render_mode == "human":
            self.render()
        return self._get_obs(), sum(parts.values()), not self.is_healthy, False, parts

    def place(self) -> Doubles:
        return self.data.body("torso").xpos[:2]  # type: ignore[no-any-return]

    def readings(self) -> tuple[Doubles, ...]:
        return self.data.qpos, self.data.qvel, self.data.cfrc_ext.ravel()

    @classmethod
    def outcome(
        cls, envs: Sequence[Any], velocity_BX: Doubles, readings: Sequence[Doubles], actions_BA: Floats
    ) -> Outcome:
        positions_BQ, velocities_BV, forces_BF = readings
        direction_BX = np.array([env.direction for env in envs])
        lowest, highest = HEALTHY_HEIGHTS
        height_B = positions_BQ[:, 2]
        finite_B = np.isfinite(positions_BQ).all(axis=1) & np.isfinite(velocities_BV).all(axis=1)
        return Outcome(
            observations_BS=np.concatenate([positions_BQ[:, 2:], velocities_BV], axis=1).astype(np.float32),
            rewards_B=(velocity_BX * direction_BX).sum(axis=1)
            - CONTROL_COST * np.square(actions_BA, dtype=np.float64).sum(axis=1)
            - CONTACT_COST * np.square(np.clip(forces_BF, -1.0, 1.0)).sum(axis=1)
            + SURVIVAL_REWARD,
            terminated_B=~(finite_B & (lowest <= height_B) & (height_B <= highest)),
        )

    def _get_obs(self) -> Floats:
        return np.concatenate([self.data.qpos[2:], self.data.qvel]).astype(np.float32)


def _quarter_turns(goal_BG: Floats) -> NDArray[np.int64]:
    quarters: NDArray[np.int64] = np.round(goal_BG[:, 0] / (np.pi / 2)).astype(np.int64) % 4
    return quarters


def _features(observation_BS: Floats, goal_BG: Floats) -> Floats:
    """Return the observations as seen from the goal direction, and by an Ant that faces it within 45 degrees.

    The plane looks the same from every direction, so the goal is told by turning the world until it lies along x. The
    Ant looks the same after every quarter turn, so its legs are named anew from the one that stands nearest to the
    goal: one network has to learn an eighth of a circle to either side instead of all of it.
    """
    goal_B, quarters_B = goal_BG[:, 0], _quarter_turns(goal_BG)
    features_BS = observation_BS.copy()
    world_B = _about_z(-goal_B)
    body_B = _about_z(quarters_B * (np.pi / 2))
    orientation_4B = _product(_product(world_B, observation_BS[:, ORIENTATION].T), body_B)
    # A quaternion and its negative are the same orientation.
    features_BS[:, ORIENTATION] = (orientation_4B * np.copysign(1.0, orientation_4B[0])).T
    features_BS[:, PLANAR_VELOCITY] = _turned(observation_BS[:, PLANAR_VELOCITY], -goal_B)
    features_BS[:, PLANAR_SPIN] = _turned(observation_BS[:, PLANAR_SPIN], -quarters_B * (np.pi / 2))
    legs_B4 = (np.arange(4) + quarters_B[:, None]) % 4
    for joints in (JOINT_ANGLES, JOINT_VELOCITIES):
        upright_BLJ = observation_BS[:, joints].reshape(-1, 4, 2) * LEG_SIGNS
        features_BS[:, joints] = np.take_along_axis(upright_BLJ, legs_B4[:, :, None], axis=1).reshape(-1, 8)
    return features_BS


def _actions(output_BA: Floats, goal_BG: Floats) -> Floats:
    """Return the actions that an output of the network means: its legs are named from the one nearest to the goal."""
    legs_B4 = (np.arange(4) - _quarter_turns(goal_BG)[:, None]) % 4
    named_BLJ = np.take_along_axis(output_BA.reshape(-1, 4, 2), legs_B4[:, :, None], axis=1) * LEG_SIGNS
    return named_BLJ[:, LEGS_OF_ACTUATORS].reshape(-1, 8)


def _about_z(angle_B: NDArray[np.floating]) -> NDArray[np.floating]:
    zero_B = np.zeros_like(angle_B)
    return np.stack([np.cos(angle_B / 2), zero_B, zero_B, np.sin(angle_B / 2)])


def _product(left_4B: NDArray[np.floating], right_4B: NDArray[np.floating]) -> NDArray[np.floating]:
    a, b, c, d = left_4B
    w, x, y, z = right_4B
    return np.stack(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ]
    )


def _turned(vector_B2: Floats, angle_B: NDArray[np.floating]) -> NDArray[np.floating]:
    (x, y), c, s = vector_B2.T, np.cos(angle_B), np.sin(angle_B)
    return np.stack([c * x - s * y, s * x + c * y], axis=1)


def _goal(task: int) -> Goal:
    return (DIRECTIONS[task],)


_held_out = {*TEST_TASKS, *VALIDATION_TASKS}

FAMILY = register(
    TaskFamily(
        name="ant-dir",
        gymnasium_id="PromptDiffuser/AntDir-v0",
        entry_point=AntDirEnv,
        observation_dim=OBSERVATION_DIM,
        action_dim=8,
        horizon=200,
        train_tasks=tuple(task for task in range(len(DIRECTIONS)) if task not in _held_out),
        validation_tasks=VALIDATION_TASKS,
        test_tasks=TEST_TASKS,
        # The highest expert return of a training task; the release asks for 500, less than the expert's mean.
        target_return=755.0,
        return_scale=500.0,
        goal=_goal,
        label=lambda task: f"{np.degrees(DIRECTIONS[task]):.1f}°",
        expert=LearnedExpert(_features, _actions),
        episodes_per_task=999,  # as in the released HalfCheetah data
        terminates=True,
    ),
    place=30,
)
