"""The frozen backbone as a policy, against a reference that rebuilds each window from Python lists."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.windows import Segments
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.rollout.policies import AdaptedPolicies, AdaptedPolicy, PromptedPolicy
from promptdiffuser.rollout.protocol import EvaluationRequest
from promptdiffuser.rollout.stepping import EpisodeStepper
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.families.cheetah_vel import CheetahVelEnv
from promptdiffuser.tasks.family import BatchStep
from promptdiffuser.training.precision import Precision
from tests.rollout.synthetic_policies import TINY, backbone_of, prompted, start_all, tiny_backbone, tiny_pool

TARGET = -35.0
# A target other than 0, so that return-to-go bookkeeping shows; a horizon that the window of six steps slides along.
FAMILY = dataclasses.replace(FAMILIES["cheetah-vel"], horizon=20, target_return=TARGET, return_scale=10.0)
REQUESTS = [
    EvaluationRequest(7, 1, "m", prompt=0, episode=0, target_return=TARGET),
    EvaluationRequest(30, 2, "m", prompt=2, episode=0, target_return=TARGET),
    EvaluationRequest(7, 3, "m", prompt=1, episode=0, target_return=-10.0),
    EvaluationRequest(30, 4, "m", prompt=1, episode=1, target_return=TARGET),
    EvaluationRequest(7, 5, "m", prompt=0, episode=1, target_return=TARGET),
]


class EndsEarly(CheetahVelEnv):
    """Ends after 9, 13 or 17 steps, which the reset's seed decides."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.left = 9 + 4 * ((seed or 0) % 3)
        return super().reset(seed=seed, options=options)

    @classmethod
    def step_together(cls, envs: Sequence["EndsEarly"], actions_BA: np.ndarray) -> BatchStep:
        for env in envs:
            env.left -= 1
        ended = np.array([env.left == 0 for env in envs])
        return dataclasses.replace(super().step_together(envs, actions_BA), terminated_B=ended)


def reference_actions(
    backbone: PromptDT, normaliser: Normaliser, prompt: Segments, observations: list, rewards: list, target: float
) -> list:
    """One episode, one decision at a time; every decision builds its window anew, from all steps if it is banded."""
    mean, std = normaliser.state_mean.tolist(), normaliser.state_std.tolist()
    to_go = [target]
    for reward in rewards:
        to_go.append(to_go[-1] - reward)
    actions: list[list[float]] = []
    for t in range(len(observations)):
        is_banded = backbone.config.attention == "banded"
        steps = list(range(0 if is_banded else max(0, t - TINY.history + 1), t + 1))
        states = [[(x - m) / s for x, m, s in zip(observations[k], mean, std, strict=True)] for k in steps]
        window = Segments(
            returns_to_go=torch.tensor([[to_go[k] / FAMILY.return_scale for k in steps]]),
            states=torch.tensor([states]),
            actions=torch.tensor([[*(actions[k] for k in steps[:-1]), [0.0] * FAMILY.action_dim]]),
            rewards=torch.zeros(1, len(steps)),
            timesteps=torch.tensor([steps]),
            valid=torch.ones(1, len(steps), dtype=torch.bool),
        )
        with torch.no_grad():
            actions.append(backbone(window, prompt)[0, -1].tolist())
    return actions


@pytest.fixture(scope="module", params=["full", "banded"])
def policies(request: pytest.FixtureRequest) -> AdaptedPolicies:
    pool, normaliser = tiny_pool(FAMILY, [1, 2, 3])
    config = dataclasses.replace(TINY, attention=request.param)
    prompts = {"m": {7: pool.prompts, 30: pool.prompts}}
    return prompted(tiny_backbone(FAMILY, config=config), normaliser, prompts)


def assert_as_reference(episodes: Episodes, policies: AdaptedPolicies, row: int, target: float) -> None:
    """The reference is fed what the episode saw, so differences do not grow through the simulator."""
    length = episodes.lengths[row]
    expected = reference_actions(
        backbone_of(policies),
        policies.normaliser,
        policies.prompts_of([REQUESTS[row]]),
        episodes.observations[row, :length].tolist(),
        episodes.rewards[row, :length].tolist(),
        target,
    )
    np.testing.assert_allclose(episodes.actions[row, :length], expected, atol=1e-5)


def test_batch_equals_one_episode_at_a_time(policies: AdaptedPolicies) -> None:
    episodes = EpisodeStepper(FAMILY).run(REQUESTS, PromptedPolicy(FAMILY, policies, backbone_of(policies)))
    for row, request in enumerate(REQUESTS):
        assert_as_reference(episodes, policies, row, request.target_return)
    assert episodes.actions.std() > 0.05, "the actions are too uniform to tell a mistake"


@pytest.mark.parametrize("lockstep", [1, 2, 3])
def test_rows_that_are_filled_again_equal_one_episode_at_a_time(policies: AdaptedPolicies, lockstep: int) -> None:
    """Episodes of unequal lengths, so that every row is at a step of its own and some are dropped at the end."""
    stepper = EpisodeStepper(dataclasses.replace(FAMILY, entry_point=EndsEarly))
    episodes = stepper.run(REQUESTS, PromptedPolicy(FAMILY, policies, backbone_of(policies)), lockstep)
    assert len(set(episodes.lengths.tolist())) == 3
    for row, request in enumerate(REQUESTS):
        assert_as_reference(episodes, policies, row, request.target_return)


def test_bf16_decides_nearly_as_fp32(policies: AdaptedPolicies) -> None:
    observation = FAMILY.make(7).reset(seed=0)[0]

    def first_actions(precision: Precision) -> np.ndarray:
        policy = PromptedPolicy(FAMILY, policies, backbone_of(policies), precision)
        start_all(policy, REQUESTS)
        return policy.act(np.stack([observation] * len(REQUESTS)))

    difference = np.abs(first_actions("bf16") - first_actions("fp32")).max()
    assert 0 < difference < 0.03


@pytest.mark.parametrize("changed", ["returns_to_go", "states", "actions", "timesteps"])
def test_actions_depend_on_the_prompt(policies: AdaptedPolicies, changed: str) -> None:
    observation = FAMILY.make(7).reset(seed=0)[0]

    def first_actions(prompts: Segments) -> np.ndarray:
        used = prompted(backbone_of(policies), policies.normaliser, {"m": {7: prompts, 30: prompts}})
        policy = PromptedPolicy(FAMILY, used, backbone_of(used))
        start_all(policy, REQUESTS)
        return policy.act(np.stack([observation] * len(REQUESTS)))

    prompts = policies.policies["m"][7].prompts
    assert isinstance(prompts, Segments)
    other = dataclasses.replace(prompts, **{changed: getattr(prompts, changed).flip(1)})
    assert not np.allclose(first_actions(prompts), first_actions(other), atol=1e-6)


def test_begin_forgets_the_episodes_before(policies: AdaptedPolicies) -> None:
    policy, stepper = PromptedPolicy(FAMILY, policies, backbone_of(policies)), EpisodeStepper(FAMILY)
    first, again = stepper.run(REQUESTS, policy), stepper.run(REQUESTS, policy)
    assert np.array_equal(first.actions, again.actions)


def test_a_soft_prompt_of_embedded_tokens_decides_as_the_trajectory_prompt(policies: AdaptedPolicies) -> None:
    backbone, observation = backbone_of(policies), FAMILY.make(7).reset(seed=0)[0]

    def first_actions(used: AdaptedPolicies) -> np.ndarray:
        policy = PromptedPolicy(FAMILY, used, backbone)
        start_all(policy, REQUESTS)
        return policy.act(np.stack([observation] * len(REQUESTS)))

    with torch.no_grad():
        tokens = backbone.prompt_tokens(policies.policies["m"][7].prompts)
    soft = AdaptedPolicies(policies.normaliser, {"m": dict.fromkeys((7, 30), AdaptedPolicy(backbone, tokens))})
    np.testing.assert_allclose(first_actions(soft), first_actions(policies), atol=1e-6)
