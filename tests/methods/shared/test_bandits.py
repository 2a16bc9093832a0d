"""Bandits on rewards that are known: an additive function of the segments' features, and noise."""

from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from promptdiffuser.methods.shared.bandits import (
    BanditConfig,
    Posterior,
    RewardModel,
    Strategy,
    num_parameters,
    play_bandit,
)

ARMS, FEATURES, EPISODES = 40, 3, 100


def rewards_of_arms(num_slots: int) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """Return features (N, F) and what each arm is worth in each slot (N, J): the nearer to a place, the more."""
    generator = torch.Generator().manual_seed(0)
    features_NF = torch.rand(ARMS, FEATURES, generator=generator)
    places_JF = torch.rand(num_slots, FEATURES, generator=generator)
    return features_NF, -10 * torch.cdist(features_NF, places_JF).double().numpy()


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_a_bandit_finds_the_best_arms(strategy: Strategy, slots: int) -> None:
    features_NF, worth_NJ = rewards_of_arms(slots)
    noise = np.random.default_rng(0)
    played = []

    def play(arms_QJ: NDArray[np.int64], first: int) -> NDArray[np.float64]:
        assert first == len(played)
        played.extend(arms_QJ.tolist())
        return worth_NJ[arms_QJ, np.arange(slots)].sum(1) + 0.1 * noise.normal(size=len(arms_QJ))

    config = BanditConfig(episodes=EPISODES, at_a_time=10, slots=slots, fit_steps=150)
    best_J = play_bandit(play, features_NF, strategy, config, ("test", strategy))
    assert len(played) == EPISODES
    assert best_J.tolist() in played
    ranks = [int((worth_NJ[:, slot] > worth_NJ[arm, slot]).sum()) for slot, arm in enumerate(best_J)]
    assert max(ranks) <= (0 if slots == 1 else 2)
    # It comes to prefer good arms: random ones would be at the median.
    late = np.array(played[-30:])
    assert worth_NJ[late, np.arange(slots)].sum(1).mean() > np.quantile(worth_NJ, 0.75, axis=0).sum()


def test_episodes_without_a_return_teach_nothing() -> None:
    features_NF, worth_NJ = rewards_of_arms(1)

    def play(arms_QJ: NDArray[np.int64], first: int) -> NDArray[np.float64]:
        return np.where(arms_QJ[:, 0] % 2, worth_NJ[arms_QJ[:, 0], 0], np.nan)

    best_J = play_bandit(play, features_NF, "thompson", BanditConfig(episodes=40, at_a_time=10, fit_steps=50), ("t",))
    assert np.isfinite(worth_NJ[best_J]).all()
    with pytest.raises(RuntimeError, match="nothing to learn"):
        play_bandit(
            lambda arms_QJ, first: np.full(len(arms_QJ), np.nan), features_NF, "ucb", BanditConfig(episodes=20), ("t",)
        )


def test_deviations_are_those_of_sampled_contributions() -> None:
    features_NF, worth_NJ = rewards_of_arms(2)
    arms_RJ = torch.randint(0, ARMS, (25, 2), generator=torch.Generator().manual_seed(1))
    returns_R = torch.from_numpy(worth_NJ[arms_RJ, np.arange(2)].sum(1)).float()
    known = Posterior(RewardModel(2, FEATURES, "test"), features_NF, arms_RJ, returns_R, steps=50)
    drawn = torch.stack([known.contributions(w) for w in known.sampled(4000, torch.Generator().manual_seed(2))])
    torch.testing.assert_close(drawn.mean(0), known.contributions(known.mean_W), atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.std(0), known.deviations(), atol=0.01, rtol=0.1)


def test_declared_parameters_are_the_counted_ones() -> None:
    for slots in (1, 3):
        model = RewardModel(slots, FEATURES, "test")
        assert num_parameters(slots, FEATURES) == sum(parameter.numel() for parameter in model.parameters())
