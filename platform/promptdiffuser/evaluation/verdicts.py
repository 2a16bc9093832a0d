"""What a task says of the states and actions of a prompt: where they lead and what they earn.

Where an observation is the simulator's state, the simulator is put there and steps: the verdict is the task's own.
Elsewhere (Meta-World, whose observations show the hand and not the arm) it is a regression on real prompts of the
training tasks, given the goal that the observation hides, and its own error on real prompts has to be read beside it.

Axes: N prompts, P prompt steps, S observation, A action, I inputs of the regression.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.windows import PromptPool, Segments
from promptdiffuser.tasks.family import TaskEnv, TaskFamily

if TYPE_CHECKING:
    from sklearn.ensemble import ExtraTreesRegressor

Doubles = NDArray[np.float64]

TREES, SAMPLES_OF_A_LEAF = 30, 3
MOST_PROMPTS = 1_500
"""Prompts that a regression is fitted to, spread over all: a fit to so many takes some ten seconds."""


@dataclass(frozen=True)
class Steps:
    """Steps of prompts in the environment's units."""

    observations: NDArray[np.float32]
    """(N, P, S)"""
    actions: NDArray[np.float32]
    """(N, P, A)"""
    rewards: NDArray[np.float32]
    """(N, P)"""

    @staticmethod
    def of(prompts: Segments, normaliser: Normaliser) -> "Steps":
        """Return the steps of prompts."""
        return Steps(
            normaliser.observations(prompts.states).numpy(),
            prompts.actions.numpy(),
            normaliser.earned(prompts.rewards).numpy(),
        )


@dataclass(frozen=True)
class Verdict:
    """Where steps lead and what they earn; not a number where the simulator loses the state."""

    observations: Doubles
    """(N, P, S) observation after each step."""
    rewards: Doubles
    """(N, P) reward of each step."""


class Judge(Protocol):
    """Gives verdicts on the steps of prompts of one task."""

    is_simulator: bool
    """Whether they are the simulator's own, and not a regression's."""

    def __call__(self, task: int, steps: Steps) -> Verdict:
        """Return the verdict."""


def judge_of(family: TaskFamily, normaliser: Normaliser, training: PromptPool) -> Judge:
    """Return the simulator where observations are states, else a regression on the training prompts."""
    env = family.make(family.tasks[0])
    return SimulatorJudge(env) if env.observation_is_state else RegressionJudge(family, normaliser, training)


class SimulatorJudge:
    """The task itself, one step from each state."""

    is_simulator = True

    def __init__(self, env: TaskEnv) -> None:
        """Take an environment, which becomes whatever task it is asked about."""
        self._env = env

    def __call__(self, task: int, steps: Steps) -> Verdict:
        """Return the verdict."""
        self._env.set_task(task)
        self._env.reset(seed=0)
        shape = steps.actions.shape[:2]
        observations = np.full((np.prod(shape), steps.observations.shape[-1]), np.nan)
        rewards = np.full(len(observations), np.nan)
        states, actions = (each.reshape(len(rewards), -1) for each in (steps.observations, steps.actions))
        for number, (state_S, action_A) in enumerate(zip(states, actions.clip(-1, 1), strict=True)):
            self._env.restore(state_S)
            step = self._env.step_together([self._env], action_A[None])
            if not step.diverged_B[0]:
                observations[number], rewards[number] = step.observations_BS[0], step.rewards_B[0]
        return Verdict(observations.reshape(*shape, -1), rewards.reshape(shape))


class RegressionJudge:
    """Extremely randomised trees (Geurts, Ernst, Wehenkel 2006) from (observation, action, goal).

    Prompts of a single step do not say where it leads, and neither does a regression on them.
    """

    is_simulator = False

    def __init__(self, family: TaskFamily, normaliser: Normaliser, training: PromptPool) -> None:
        """Fit it to the prompts of the training tasks."""
        self._family = family
        every = -(-len(training.prompts) // MOST_PROMPTS)
        tasks_N = training.index.tasks[::every]
        steps = Steps.of(training.prompts.select(slice(None, None, every)), normaliser)
        inputs_NPI = self._inputs(tasks_N, steps)
        self._rewards = _fitted(inputs_NPI, steps.rewards)
        self._changes = None
        if steps.rewards.shape[1] > 1:
            self._changes = _fitted(inputs_NPI[:, :-1], np.diff(steps.observations, axis=1))

    def __call__(self, task: int, steps: Steps) -> Verdict:
        """Return the verdict."""
        inputs_NPI = self._inputs(np.full(len(steps.actions), task), steps)
        flat = inputs_NPI.reshape(-1, inputs_NPI.shape[-1])
        after_NPS = np.full(steps.observations.shape, np.nan)
        if self._changes is not None:
            after_NPS = steps.observations + self._changes.predict(flat).reshape(after_NPS.shape)
        return Verdict(after_NPS, self._rewards.predict(flat).reshape(steps.rewards.shape))

    def _inputs(self, tasks_N: NDArray[np.int64], steps: Steps) -> Doubles:
        goals_NG = np.array([self._family.goal(int(task)) for task in tasks_N])
        goals_NPG = np.repeat(goals_NG[:, None], steps.actions.shape[1], axis=1)
        inputs_NPI: Doubles = np.concatenate([steps.observations, steps.actions, goals_NPG], axis=-1)
        return inputs_NPI


def _fitted(inputs_NPI: Doubles, outputs_NPO: NDArray[np.float32]) -> "ExtraTreesRegressor":
    from sklearn.ensemble import ExtraTreesRegressor  # a second that every job would wait for

    trees = ExtraTreesRegressor(TREES, min_samples_leaf=SAMPLES_OF_A_LEAF, random_state=0)
    outputs = outputs_NPO.reshape(-1, *outputs_NPO.shape[2:])
    return trees.fit(inputs_NPI.reshape(-1, inputs_NPI.shape[-1]), outputs)
