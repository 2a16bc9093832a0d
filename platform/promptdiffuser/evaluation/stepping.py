"""The one engine that steps episodes, whether an expert collects or an adapted policy is evaluated.

Axes: B episodes of one batch, T steps, S observation, A action.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.tasks.family import Floats, TaskEnv, TaskFamily


@dataclass(frozen=True)
class EpisodeRequest:
    """One episode to run: a task and the seed of the simulator's reset."""

    task: int
    seed: int


class BatchPolicy(Protocol):
    """A policy for B episodes in lockstep."""

    def begin(self, tasks: Sequence[int]) -> None:
        """Forget everything and start one episode of each of these tasks."""

    def act(self, observations_BS: Floats) -> Floats:
        """Return actions (B, A) for the current observations, in the environment's units."""

    def observe(self, rewards_B: Floats) -> None:
        """Take the rewards of the last actions."""


class EpisodeStepper:
    """Steps batches of episodes of one family; its simulators become whatever task the next batch asks for."""

    def __init__(self, family: TaskFamily) -> None:
        """Make an engine without simulators; there will be as many as the largest batch has episodes."""
        self.family = family
        self._envs: list[TaskEnv] = []

    def run(self, requests: Sequence[EpisodeRequest], policy: BatchPolicy) -> Episodes:
        """Run every requested episode to its end, all in lockstep.

        An episode depends on its request and on the policy's actions alone, not on its neighbours in the batch.
        """
        family, num = self.family, len(requests)
        observations_BTS = np.zeros((num, family.horizon, family.observation_dim), np.float32)
        actions_BTA = np.zeros((num, family.horizon, family.action_dim), np.float32)
        rewards_BT = np.zeros((num, family.horizon), np.float32)
        lengths_B = np.zeros(num, np.int64)
        successes_B = np.zeros(num, bool)
        alive_B = np.ones(num, bool)

        envs = self._take([request.task for request in requests])
        current_BS = np.stack([env.reset(seed=r.seed)[0] for env, r in zip(envs, requests, strict=True)])
        policy.begin([request.task for request in requests])
        for t in range(family.horizon):
            observations_BTS[alive_B, t] = current_BS[alive_B]
            clipped_BA = np.clip(policy.act(current_BS), -1.0, 1.0).astype(np.float32)
            for row in np.flatnonzero(alive_B):
                current_BS[row], reward, terminated, _, info = envs[row].step(clipped_BA[row])
                actions_BTA[row, t] = clipped_BA[row]
                rewards_BT[row, t] = reward
                lengths_B[row] = t + 1
                alive_B[row] = not terminated
                if family.has_success:
                    successes_B[row] |= bool(info["success"])
            policy.observe(rewards_BT[:, t])
            if not alive_B.any():
                break
        return Episodes(
            tasks=np.array([r.task for r in requests], np.int64),
            seeds=np.array([r.seed for r in requests], np.int64),
            lengths=lengths_B,
            successes=successes_B,
            observations=observations_BTS,
            actions=actions_BTA,
            rewards=rewards_BT,
        )

    def _take(self, tasks: Sequence[int]) -> list[TaskEnv]:
        for env, task in zip(self._envs, tasks, strict=False):
            env.set_task(task)
        self._envs += [self.family.make(task) for task in tasks[len(self._envs) :]]
        return self._envs[: len(tasks)]
