"""The frozen backbone as a policy, against a reference that rebuilds each window from Python lists."""

import dataclasses

import numpy as np
import pytest
import torch

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.windows import Segments
from promptdiffuser.evaluation.policies import PromptedPolicy
from promptdiffuser.evaluation.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.tasks import FAMILIES
from tests.evaluation.synthetic_policies import TINY, tiny_backbone, tiny_pool

TARGET = -35.0
# A target other than 0, so that return-to-go bookkeeping shows; a horizon that the window of six steps slides along.
FAMILY = dataclasses.replace(FAMILIES["cheetah-vel"], horizon=20, target_return=TARGET, return_scale=10.0)
REQUESTS = [EpisodeRequest(7, 1), EpisodeRequest(30, 2), EpisodeRequest(7, 3)]


def reference_actions(
    backbone: PromptDT, normaliser: Normaliser, prompt: Segments, observations: list, rewards: list
) -> list:
    """One episode, one decision at a time; every decision builds its window anew, from all steps if it is banded."""
    mean, std = normaliser.state_mean.tolist(), normaliser.state_std.tolist()
    to_go = [TARGET]
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
def parts(request: pytest.FixtureRequest) -> tuple[PromptDT, Normaliser, Segments]:
    pool, normaliser = tiny_pool(FAMILY, [1, 2, 3])
    config = dataclasses.replace(TINY, attention=request.param)
    return tiny_backbone(FAMILY, config=config), normaliser, pool.prompts


def test_batch_equals_one_episode_at_a_time(parts: tuple[PromptDT, Normaliser, Segments]) -> None:
    backbone, normaliser, prompts = parts
    episodes = EpisodeStepper(FAMILY).run(REQUESTS, PromptedPolicy(FAMILY, backbone, normaliser, prompts))
    for row in range(len(REQUESTS)):
        # The reference is fed what the episode saw, so differences do not grow through the simulator.
        expected = reference_actions(
            backbone,
            normaliser,
            prompts.select(slice(row, row + 1)),
            episodes.observations[row].tolist(),
            episodes.rewards[row].tolist(),
        )
        np.testing.assert_allclose(episodes.actions[row], expected, atol=2e-5)
    assert episodes.actions.std() > 0.05, "the actions are too uniform to tell a mistake"


@pytest.mark.parametrize("changed", ["returns_to_go", "states", "actions", "timesteps"])
def test_actions_depend_on_the_prompt(parts: tuple[PromptDT, Normaliser, Segments], changed: str) -> None:
    backbone, normaliser, prompts = parts
    observation = EpisodeStepper(FAMILY).family.make(7).reset(seed=0)[0]

    def first_actions(used: Segments) -> np.ndarray:
        policy = PromptedPolicy(FAMILY, backbone, normaliser, used)
        policy.begin([7, 7, 7])
        return policy.act(np.stack([observation] * 3))

    other = dataclasses.replace(prompts, **{changed: getattr(prompts, changed).flip(1)})
    assert not np.allclose(first_actions(prompts), first_actions(other), atol=1e-6)


def test_begin_forgets_the_episodes_before(parts: tuple[PromptDT, Normaliser, Segments]) -> None:
    backbone, normaliser, prompts = parts
    policy = PromptedPolicy(FAMILY, backbone, normaliser, prompts)
    stepper = EpisodeStepper(FAMILY)
    first, again = stepper.run(REQUESTS, policy), stepper.run(REQUESTS, policy)
    assert np.array_equal(first.actions, again.actions)
