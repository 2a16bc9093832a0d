"""The stepping engine: an episode is the same alone, in company, on a used simulator and in a plain loop."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.errors import UserError
from promptdiffuser.rollout.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.experts import ScriptedPolicy
from promptdiffuser.tasks.families.cheetah_vel import CheetahVelEnv
from promptdiffuser.tasks.family import BatchStep, TaskEnv, TaskFamily
from tests.data.synthetic import assert_equal
from tests.rollout.synthetic_policies import FeedbackPolicy, start_all

FAMILY = FAMILIES["cheetah-vel"]
REQUESTS = [EpisodeRequest(7, 11), EpisodeRequest(0, 12), EpisodeRequest(7, 13), EpisodeRequest(39, 11)]


def run(requests: list[EpisodeRequest], stepper: EpisodeStepper | None = None) -> Episodes:
    stepper = stepper or EpisodeStepper(FAMILY)
    return stepper.run(requests, FeedbackPolicy(stepper.family))


@pytest.mark.parametrize("row", range(len(REQUESTS)))
def test_episode_does_not_depend_on_its_neighbours(row: int) -> None:
    assert_equal(run([REQUESTS[row]]), run(REQUESTS).select(slice(row, row + 1)))


def test_episode_does_not_depend_on_the_order_of_its_batch() -> None:
    assert_equal(run(REQUESTS[::-1]).select(slice(None, None, -1)), run(REQUESTS))


def test_used_simulators_give_the_same_episodes() -> None:
    stepper = EpisodeStepper(FAMILY)
    first = run(REQUESTS, stepper)
    run([EpisodeRequest(7, 99), EpisodeRequest(0, 98)], stepper)
    assert_equal(run(REQUESTS, stepper), first)


def test_episodes_equal_a_plain_gymnasium_loop() -> None:
    episodes = run(REQUESTS)
    for row, request in enumerate(REQUESTS):
        env = gymnasium.make(FAMILY.gymnasium_id, task=request.task)
        policy = FeedbackPolicy(FAMILY)
        start_all(policy, [request])
        observation, _ = env.reset(seed=request.seed)
        rewards, truncated = [], False
        while not truncated:
            t = len(rewards)
            assert np.array_equal(episodes.observations[row, t], observation)
            action = np.clip(policy.act(observation[None])[0], -1, 1)
            assert np.array_equal(episodes.actions[row, t], action)
            observation, reward, _, truncated, _ = env.step(action)
            rewards.append(np.float32(reward))
            policy.observe(np.array([np.float32(reward)]))
        assert np.array_equal(episodes.rewards[row], rewards)
        assert episodes.lengths[row] == len(rewards) == FAMILY.horizon
        assert (episodes.tasks[row], episodes.seeds[row]) == (request.task, request.seed)


def test_stored_actions_are_those_that_the_environment_received() -> None:
    actions = run(REQUESTS).actions
    assert np.abs(actions).max() == 1  # the policy asked for more
    assert (np.abs(actions) < 1).any()


class Countdown(TaskEnv):
    """Terminates after `task` + 1 steps, with a reward of 1 each; stepping on after the end is an error."""

    made: ClassVar[list["Countdown"]] = []

    def __init__(self, task: int) -> None:
        self.observation_space = Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = Box(-1, 1, (1,), np.float32)
        self.task, self.left = task, 0
        self.made.append(self)

    def set_task(self, task: int) -> None:
        self.task = task

    @property
    def diverged(self) -> bool:
        return False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.left = self.task + 1
        return np.array([self.left], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.left > 0, "stepped after its end"
        self.left -= 1
        # Solved on its third step alone, if it comes to that.
        success = float(self.left == self.task - 2)
        return np.array([self.left], np.float32), 1.0, self.left == 0, False, {"success": success}


@pytest.fixture
def countdown() -> TaskFamily:
    Countdown.made.clear()
    return dataclasses.replace(
        FAMILY, name="countdown", entry_point=Countdown, observation_dim=1, action_dim=1, horizon=6, terminates=True
    )


def test_episodes_that_end_early_are_padded_with_zeros(countdown: TaskFamily) -> None:
    stepper = EpisodeStepper(countdown)
    for _ in range(2):  # the second time on used simulators
        episodes = run([EpisodeRequest(task, 0) for task in (0, 3, 9)], stepper)
        assert episodes.lengths.tolist() == [1, 4, 6]  # the last is cut by the horizon
        assert episodes.returns.tolist() == [1, 4, 6]
        assert episodes.observations[..., 0].tolist() == [[1, 0, 0, 0, 0, 0], [4, 3, 2, 1, 0, 0], [10, 9, 8, 7, 6, 5]]
        for row, length in enumerate(episodes.lengths):
            assert (episodes.rewards[row, length:] == 0).all()
            assert (episodes.actions[row, length:] == 0).all()


def test_stepping_stops_when_every_episode_has_ended(countdown: TaskFamily) -> None:
    policy = FeedbackPolicy(countdown)
    EpisodeStepper(countdown).run([EpisodeRequest(0, 0), EpisodeRequest(2, 0)], policy)
    assert policy.observed == 3


def test_a_task_solved_at_any_step_counts_where_the_family_knows_success(countdown: TaskFamily) -> None:
    requests = [EpisodeRequest(task, 0) for task in (1, 2, 5, 20)]
    solved = run(requests, EpisodeStepper(dataclasses.replace(countdown, has_success=True))).successes
    assert solved.dtype == bool
    assert solved.tolist() == [False, True, True, True]
    assert run(requests, EpisodeStepper(countdown)).successes.tolist() == [False] * 4


def test_there_are_never_more_simulators_than_the_largest_batch_has_episodes(countdown: TaskFamily) -> None:
    stepper = EpisodeStepper(countdown)
    for tasks in ([3], [0, 5], [1], [9, 2, 4], [7, 7], [0, 1, 2]):
        episodes = run([EpisodeRequest(task, 0) for task in tasks], stepper)
        assert episodes.lengths.tolist() == [min(task + 1, 6) for task in tasks]
    assert len(Countdown.made) == 3


def test_simulators_that_become_other_tasks_give_the_episodes_of_fresh_ones() -> None:
    stepper = EpisodeStepper(FAMILY)
    for tasks in ([7, 0, 39], [39, 7], [1, 2, 3, 7]):
        requests = [EpisodeRequest(task, 50 + task) for task in tasks]
        assert_equal(run(requests, stepper), run(requests))


@pytest.mark.parametrize("lockstep", [1, 2, 3, 4])
def test_rows_whose_episode_ended_are_filled_with_the_next(countdown: TaskFamily, lockstep: int) -> None:
    requests = [EpisodeRequest(task, seed) for seed, task in enumerate((2, 0, 4, 1, 9, 3, 0))]
    together = EpisodeStepper(countdown).run(requests, FeedbackPolicy(countdown))
    assert len(Countdown.made) == len(requests)
    Countdown.made.clear()
    assert_equal(EpisodeStepper(countdown).run(requests, FeedbackPolicy(countdown), lockstep), together)
    assert len(Countdown.made) == lockstep, "more simulators than rows"
    assert together.lengths.tolist() == [3, 1, 5, 2, 6, 4, 1]


def test_real_episodes_do_not_depend_on_how_many_are_stepped_at_a_time() -> None:
    together = run(REQUESTS)
    for lockstep in (1, 3):
        assert_equal(EpisodeStepper(FAMILY).run(REQUESTS, FeedbackPolicy(FAMILY), lockstep), together)


def test_a_full_batch_is_stepped_as_long_as_episodes_wait(countdown: TaskFamily) -> None:
    sizes = []

    class Watching(FeedbackPolicy):
        def act(self, observations_BS: np.ndarray) -> np.ndarray:
            sizes.append(len(observations_BS))
            return super().act(observations_BS)

    requests = [EpisodeRequest(task, 0) for task in (0, 1, 2, 0, 1, 2, 5)]
    EpisodeStepper(countdown).run(requests, Watching(countdown), lockstep=3)
    assert sizes[:3] == [3, 3, 3]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == sum(min(r.task + 1, 6) for r in requests), "a row was stepped for nobody"


# --- simulators that lose the state


class LosesState(CheetahVelEnv):
    """A real cheetah whose state is ruined on the tenth step of tasks below 3, each in its way."""

    RUIN: ClassVar[dict[int, float]] = {0: np.nan, 1: 1e12, 2: 2e6}

    def set_task(self, task: int) -> None:
        super().set_task(task)
        self.number = task

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.done = 0
        return super().reset(seed=seed, options=options)

    @classmethod
    def step_together(cls, envs: Sequence["LosesState"], actions_BA: np.ndarray) -> BatchStep:
        for env in envs:
            env.done += 1
            if env.done == 10 and env.number in cls.RUIN:
                env.data.qvel[0] = cls.RUIN[env.number]
        return super().step_together(envs, actions_BA)


@pytest.fixture
def losing() -> TaskFamily:
    return dataclasses.replace(FAMILY, entry_point=LosesState, horizon=30)


def test_a_lost_state_ends_the_episode_with_a_flag_and_without_a_return(losing: TaskFamily) -> None:
    requests = [EpisodeRequest(task, 0) for task in (5, 0, 6, 1, 2, 7)]
    rollouts = EpisodeStepper(losing).roll_out(requests, FeedbackPolicy(losing), lockstep=2)
    assert rollouts.diverged_N.tolist() == [False, True, False, True, True, False]
    assert rollouts.episodes.lengths.tolist() == [30, 10, 30, 10, 10, 30]
    assert np.isfinite(rollouts.episodes.rewards).all()
    assert np.isfinite(rollouts.episodes.observations).all()
    # The neighbours do not notice, nor does the next episode in the same simulator.
    sane = [0, 2, 5]
    alone = EpisodeStepper(losing).run([requests[number] for number in sane], FeedbackPolicy(losing))
    assert_equal(rollouts.episodes.select(np.array(sane)), alone)


def test_a_lost_state_is_no_data(losing: TaskFamily) -> None:
    with pytest.raises(RuntimeError, match=r"cheetah-vel lost the state in EpisodeRequest\(task=1, seed=4\)"):
        EpisodeStepper(losing).run([EpisodeRequest(5, 3), EpisodeRequest(1, 4)], FeedbackPolicy(losing))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_action_that_is_not_finite_names_episode_and_step(bad: float) -> None:
    class Broken(FeedbackPolicy):
        def act(self, observations_BS: np.ndarray) -> np.ndarray:
            actions_BA = super().act(observations_BS)
            if self.observed == 7:
                actions_BA[2, 1] = bad
            return actions_BA

    with pytest.raises(UserError, match=r"not finite at step 7 of EpisodeRequest\(task=7, seed=13\)"):
        EpisodeStepper(FAMILY).run(REQUESTS, Broken(FAMILY))


def test_success_is_what_meta_world_says_at_any_step() -> None:
    family = FAMILIES["reach"]
    stepper, requests = EpisodeStepper(family), [EpisodeRequest(0, 1), EpisodeRequest(17, 2)]
    solved = stepper.run(requests, ScriptedPolicy(family, 0.0))
    assert solved.successes.tolist() == [True, True]
    assert stepper.run(requests, ScriptedPolicy(family, 1.0)).successes.tolist() == [False, False]
    for row, request in enumerate(requests):
        env = family.make(request.task)
        observation, _ = env.reset(seed=request.seed)
        said = []
        for step, action in enumerate(solved.actions[row]):
            assert np.array_equal(observation, solved.observations[row, step])
            observation, reward, _, _, info = env.step(action)
            assert solved.rewards[row, step] == np.float32(reward)
            said.append(bool(info["success"]))
        assert any(said)
        assert not all(said)
