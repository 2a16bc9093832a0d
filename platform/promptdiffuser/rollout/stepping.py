"""The one engine that steps episodes, whether an expert collects or an adapted policy is evaluated.

Axes: N episodes, B rows of the batch that is stepped, T steps, S observation, A action.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.errors import UserError
from promptdiffuser.tasks.family import BatchStep, Floats, TaskEnv, TaskFamily

EXPLODED = 1e6
"""No sane state of these simulators (metres, radians, seconds) has a number beyond this."""

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class EpisodeRequest:
    """One episode to run: a task and the seed of the simulator's reset."""

    task: int
    seed: int


Request = TypeVar("Request", bound=EpisodeRequest)
AnyRequest = TypeVar("AnyRequest", bound=EpisodeRequest, contravariant=True)


class BatchPolicy(Protocol[AnyRequest]):
    """A policy for B episodes at a time, each at a step of its own."""

    def begin(self, num_rows: int) -> None:
        """Forget everything and make room for this many episodes at a time."""

    def start(self, rows: Rows, requests: Sequence[AnyRequest]) -> None:
        """Start these episodes in these rows."""

    def act(self, observations_BS: Floats) -> Floats:
        """Return actions (B, A) for the current observations, in the environment's units."""

    def observe(self, rewards_B: Floats) -> None:
        """Take the rewards of the last actions."""

    def keep(self, rows: Rows) -> None:
        """Drop all other rows, whose episodes have ended."""


@dataclass(frozen=True)
class Rollouts:
    """Episodes that were run, and which of them came to nothing."""

    episodes: Episodes
    diverged_N: NDArray[np.bool_]
    """Whether the simulator lost the state (not finite, or exploded); the episode ends there and has no return."""


class EpisodeStepper:
    """Steps batches of episodes of one family; its simulators become whatever task the next episode asks for."""

    def __init__(self, family: TaskFamily, device: torch.device | None = None) -> None:
        """Make an engine without simulators; there will be as many as the largest batch has rows.

        Args:
            family: The family of all episodes.
            device: Where policies that are networks compute; the CPU if not given.
        """
        self.family, self.device = family, device or torch.device("cpu")
        self._envs: list[TaskEnv] = []

    def run(self, requests: Sequence[Request], policy: BatchPolicy[Request], lockstep: int | None = None) -> Episodes:
        """Run episodes that are to be kept as data; see `roll_out`.

        Raises:
            RuntimeError: The simulator lost the state of one.
        """
        rollouts = self.roll_out(requests, policy, lockstep)
        if rollouts.diverged_N.any():
            lost = requests[int(rollouts.diverged_N.argmax())]
            raise RuntimeError(f"the simulator of {self.family.name} lost the state in {lost}: it cannot be data")
        return rollouts.episodes

    def roll_out(
        self,
        requests: Sequence[Request],
        policy: BatchPolicy[Request],
        lockstep: int | None = None,
        horizon: int | None = None,
    ) -> Rollouts:
        """Run every requested episode to its end.

        An episode depends on its request and on the policy's actions alone, not on its neighbours in the batch.

        Args:
            requests: The episodes.
            policy: What acts in them.
            lockstep: Episodes stepped at a time; one that ends gives its row to the next. All if not given.
            horizon: Steps after which an episode is cut, the family's if not given.

        Raises:
            UserError: An action is not finite.
        """
        record = _Record(self.family, requests, horizon or self.family.horizon)
        num_rows = min(len(requests), lockstep or len(requests))
        waiting = np.arange(num_rows, len(requests))
        envs = self._take(requests[:num_rows])
        record.begin(num_rows)
        current_BS = np.stack([env.reset(seed=r.seed)[0] for env, r in zip(envs, requests, strict=False)])
        policy.begin(num_rows)
        policy.start(np.arange(num_rows), requests[:num_rows])
        while envs:
            actions_BA = record.acted(current_BS, policy.act(current_BS))
            step = type(envs[0]).step_together(envs, actions_BA)
            ended = record.earned(step)
            policy.observe(step.rewards_B.astype(np.float32))
            current_BS = step.observations_BS
            next_numbers, waiting = waiting[: len(ended)], waiting[len(ended) :]
            if len(next_numbers):
                restarted, next_requests = ended[: len(next_numbers)], [requests[number] for number in next_numbers]
                for row, request in zip(restarted, next_requests, strict=True):
                    envs[row].set_task(request.task)
                    current_BS[row] = envs[row].reset(seed=request.seed)[0]
                record.restart(restarted, next_numbers)
                policy.start(restarted, next_requests)
            if len(next_numbers) < len(ended):
                kept = np.setdiff1d(np.arange(len(envs)), ended[len(next_numbers) :])
                envs, current_BS = [envs[row] for row in kept], current_BS[kept]
                record.keep(kept)
                policy.keep(kept)
        return record.rollouts()

    def _take(self, requests: Sequence[EpisodeRequest]) -> list[TaskEnv]:
        for env, request in zip(self._envs, requests, strict=False):
            env.set_task(request.task)
        self._envs += [self.family.make(request.task) for request in requests[len(self._envs) :]]
        return self._envs[: len(requests)]


def clipped(actions_BA: Floats) -> Floats:
    """Return actions as the environments receive them: within [-1, 1], the range of every family."""
    return np.clip(actions_BA, -1.0, 1.0).astype(np.float32)


class _Record:
    """What happened in every episode, and which episode each row plays."""

    def __init__(self, family: TaskFamily, requests: Sequence[EpisodeRequest], horizon: int) -> None:
        num = len(requests)
        self._requests, self._horizon = requests, horizon
        self._observations_NTS = np.zeros((num, family.horizon, family.observation_dim), np.float32)
        self._actions_NTA = np.zeros((num, family.horizon, family.action_dim), np.float32)
        self._rewards_NT = np.zeros((num, family.horizon), np.float32)
        self._lengths_N = np.zeros(num, np.int64)
        self._successes_N, self._diverged_N = np.zeros(num, bool), np.zeros(num, bool)
        self._has_success = family.has_success

    def begin(self, num_rows: int) -> None:
        self._number_B, self._step_B = np.arange(num_rows), np.zeros(num_rows, np.int64)

    def restart(self, rows: Rows, numbers: Rows) -> None:
        self._number_B[rows], self._step_B[rows] = numbers, 0

    def keep(self, rows: Rows) -> None:
        self._number_B, self._step_B = self._number_B[rows], self._step_B[rows]

    def acted(self, observations_BS: Floats, actions_BA: Floats) -> Floats:
        """Record a decision; return the actions as the environment will receive them."""
        if not np.isfinite(actions_BA).all():
            row = int(np.flatnonzero(~np.isfinite(actions_BA).all(axis=1))[0])
            raise UserError(
                f"the policy's action is not finite at step {self._step_B[row]} of "
                f"{self._requests[self._number_B[row]]}; look for a training or a prompt that went to infinity"
            )
        clipped_BA = clipped(actions_BA)
        self._observations_NTS[self._number_B, self._step_B] = observations_BS
        self._actions_NTA[self._number_B, self._step_B] = clipped_BA
        return clipped_BA

    def earned(self, step: BatchStep) -> Rows:
        """Record what the actions led to; return the rows whose episode has ended."""
        with np.errstate(invalid="ignore"):
            sane_B = np.isfinite(step.rewards_B) & (np.abs(step.observations_BS) < EXPLODED).all(axis=1)
        lost_B = step.diverged_B | ~sane_B
        self._rewards_NT[self._number_B, self._step_B] = np.where(lost_B, 0.0, step.rewards_B)
        self._step_B += 1
        self._lengths_N[self._number_B] = self._step_B
        self._diverged_N[self._number_B] = lost_B
        if self._has_success:
            self._successes_N[self._number_B] |= step.successes_B & ~lost_B
        return np.flatnonzero(step.terminated_B | lost_B | (self._step_B == self._horizon))

    def rollouts(self) -> Rollouts:
        episodes = Episodes(
            tasks=np.array([r.task for r in self._requests], np.int64),
            seeds=np.array([r.seed for r in self._requests], np.int64),
            lengths=self._lengths_N,
            successes=self._successes_N,
            observations=self._observations_NTS,
            actions=self._actions_NTA,
            rewards=self._rewards_NT,
        )
        return Rollouts(episodes, self._diverged_N)
