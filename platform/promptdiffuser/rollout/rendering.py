"""Pictures of an episode, one step after the other.

Axes: H height, W width, both in pixels; S observation, A action.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptdiffuser.rollout.stepping import BatchPolicy, EpisodeRequest
from promptdiffuser.tasks.experts import Quality, policy_of, shipped_demonstrator
from promptdiffuser.tasks.families.meta_world import MetaWorldEnv
from promptdiffuser.tasks.family import TaskEnv, TaskFamily

# Gymnasium's robots run out of the picture unless the model's own tracking camera is asked for. Of Meta-World's cameras
# this one sees goal, object and gripper; it is mounted upside down.
LOCOMOTION_CAMERA, ARM_CAMERA = "track", "corner2"


@dataclass(frozen=True)
class Frame:
    """One picture and what happened since the picture before."""

    image: NDArray[np.uint8]
    """(H, W, 3) red, green, blue."""
    steps: int
    """Steps since the picture before; 0 for the first one."""
    reward: float
    """Sum of the rewards of those steps."""
    success: bool
    """Whether the task was solved in one of them."""


class Camera:
    """One simulator of a family with a camera on it."""

    def __init__(self, family: TaskFamily, task: int, size: int) -> None:
        """Make the simulator of a task; pictures are squares of `size` pixels.

        `opengl.choose_backend` must have been called.
        """
        self.family, self.task = family, task
        self._flipped = family.entry_point is MetaWorldEnv
        name = ARM_CAMERA if self._flipped else LOCOMOTION_CAMERA
        self._env: TaskEnv = family.make(task, render_mode="rgb_array", width=size, height=size, camera_name=name)

    @property
    def frames_per_second(self) -> int:
        """Steps a second of the simulated world."""
        return int(self._env.metadata["render_fps"])

    def film(self, policy: BatchPolicy[EpisodeRequest], seed: int, every: int = 1) -> Iterator[Frame]:
        """Run one episode; yield the start, every `every`-th step and the last step.

        The episode is the one that `EpisodeStepper` runs for the same request.
        """
        request = EpisodeRequest(self.task, seed)
        observation, _ = self._env.reset(seed=request.seed)
        policy.begin(1)
        policy.start(np.arange(1), [request])
        yield Frame(self._picture(), 0, 0.0, False)
        steps, total, success = 0, 0.0, False
        for step in range(1, self.family.horizon + 1):
            action = np.clip(policy.act(observation[None])[0], -1.0, 1.0).astype(np.float32)
            observation, reward, terminated, _, info = self._env.step(action)
            policy.observe(np.array([reward], np.float32))
            steps, total, success = steps + 1, total + float(reward), success or bool(info.get("success", False))
            if terminated or step % every == 0 or step == self.family.horizon:
                yield Frame(self._picture(), steps, total, success)
                steps, total, success = 0, 0.0, False
            if terminated:
                return

    def close(self) -> None:
        """Free the simulator and its OpenGL context, which must not wait for the interpreter's end."""
        self._env.close()

    def _picture(self) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = np.asarray(self._env.render())
        return np.ascontiguousarray(image[::-1, ::-1]) if self._flipped else image.copy()


def demonstration_policy(family: TaskFamily, quality: Quality) -> BatchPolicy[EpisodeRequest]:
    """Return the policy of one episode of a quality; raises `UserError` where its expert is not shipped."""
    return policy_of(family, None if quality == "random" else shipped_demonstrator(family, quality))
