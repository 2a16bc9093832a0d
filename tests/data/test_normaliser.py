"""The normaliser's statistics equal those of all valid steps pooled, however the episodes are cut into parts."""

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.normaliser import STD_FLOOR, Normaliser
from promptdiffuser.tasks import FAMILIES
from tests.data.synthetic import draw_episodes

FAMILY = dataclasses.replace(FAMILIES["cheetah-vel"], observation_dim=4, action_dim=2, horizon=30)
LENGTHS = [30, 7, 1, 30, 12, 20, 29, 6]
EPISODES = draw_episodes(FAMILY, [0, 0, 0, 1, 1, 4, 4, 4], LENGTHS)
NORMALISER = Normaliser.fit([EPISODES], FAMILY.return_scale)


def cut(episodes: Episodes, cuts: Sequence[int]) -> list[Episodes]:
    edges = [0, *sorted(cuts), len(episodes)]
    return [episodes.select(slice(a, b)) for a, b in pairwise(edges) if a < b]


def shifted(episodes: Episodes, offset: float, scale: float = 1.0, padding: float = 0.0) -> Episodes:
    """Move observations and rewards, and put `padding` where no step is."""
    valid = np.arange(FAMILY.horizon) < episodes.lengths[:, None]
    return dataclasses.replace(
        episodes,
        observations=np.where(valid[..., None], episodes.observations * scale + offset, padding).astype(np.float32),
        rewards=np.where(valid, episodes.rewards * scale + offset, padding).astype(np.float32),
    )


def pooled_statistics(episodes: Episodes, return_scale: float) -> dict[str, np.ndarray | float]:
    """All valid steps in one float64 array."""
    rows = list(enumerate(episodes.lengths))
    states = np.concatenate([episodes.observations[n, :length] for n, length in rows]).astype(np.float64)
    rewards = np.concatenate([episodes.rewards[n, :length] for n, length in rows]).astype(np.float64)
    mean, std = states.mean(axis=0), states.std(axis=0) + STD_FLOOR
    reward_mean, reward_std = rewards.mean(), rewards.std() + STD_FLOOR
    return {
        "state_mean": mean,
        "state_std": std,
        "state_low": ((states - mean) / std).min(axis=0),
        "state_high": ((states - mean) / std).max(axis=0),
        "reward_mean": reward_mean,
        "reward_std": reward_std,
        "reward_low": ((rewards - reward_mean) / reward_std).min(),
        "reward_high": ((rewards - reward_mean) / reward_std).max(),
        "return_scale": return_scale,
    }


def assert_close(fitted: Normaliser, expected: dict[str, np.ndarray | float]) -> None:
    found = fitted.tensors()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


def test_normaliser_equals_numpy_in_float64_over_the_valid_steps() -> None:
    dirty = shifted(EPISODES, 1_000.0, padding=1e9)
    assert_close(Normaliser.fit([dirty], 250.0), pooled_statistics(dirty, 250.0))


@settings(max_examples=100, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 7), max_size=7),
    offset=st.sampled_from([0.0, -5.0, 1e3, -1e6, 1e8]),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
)
def test_statistics_do_not_depend_on_how_the_episodes_are_cut(cuts: list[int], offset: float, scale: float) -> None:
    moved = shifted(EPISODES, offset, max(scale, abs(offset) * 1e-5), padding=-1e12)  # float32 must still tell values
    assert_close(Normaliser.fit(cut(moved, cuts), 250.0), pooled_statistics(moved, 250.0))


@pytest.mark.parametrize("cuts", [[1], [399], [1, 2, 399]])
def test_very_unequal_parts_at_very_unequal_places(cuts: list[int]) -> None:
    episodes = draw_episodes(FAMILY, [0] * 400, [1, *[30] * 398, 2])
    parts = cut(episodes, cuts)
    moved = [shifted(part, 1e5 * number, 100.0) for number, part in enumerate(parts)]
    assert_close(Normaliser.fit(iter(moved), 1.0), pooled_statistics(Episodes.concatenate(moved), 1.0))


def test_parts_are_asked_for_once() -> None:
    asked: list[int] = []

    def parts() -> Iterator[Episodes]:
        for number, part in enumerate(cut(EPISODES, [2, 5])):
            asked.append(number)
            yield part

    assert_close(Normaliser.fit(parts(), 1.0), pooled_statistics(EPISODES, 1.0))
    assert asked == [0, 1, 2]


def test_no_episode_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one episode"):
        Normaliser.fit([], 1.0)


def test_normalised_training_data_is_standard_and_within_the_bounds() -> None:
    valid = torch.arange(FAMILY.horizon) < torch.from_numpy(EPISODES.lengths)[:, None]
    states = NORMALISER.states(torch.from_numpy(EPISODES.observations))[valid]
    np.testing.assert_allclose(states.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(states.std(0, correction=0), 1, atol=1e-4)
    assert (states >= NORMALISER.state_low - 1e-5).all()
    assert (states <= NORMALISER.state_high + 1e-5).all()
    restored = Normaliser(**NORMALISER.tensors())
    assert torch.equal(restored.states(states), NORMALISER.states(states))


def test_normalised_numbers_return_to_the_units_of_the_environment() -> None:
    observations, rewards = torch.from_numpy(EPISODES.observations), torch.from_numpy(EPISODES.rewards)
    torch.testing.assert_close(NORMALISER.observations(NORMALISER.states(observations)), observations)
    torch.testing.assert_close(NORMALISER.earned(NORMALISER.rewards(rewards)), rewards)


def test_constant_feature_does_not_divide_by_zero() -> None:
    constant = dataclasses.replace(EPISODES, observations=np.ones_like(EPISODES.observations))
    fitted = Normaliser.fit([constant], 1.0)
    assert torch.isfinite(fitted.states(torch.ones(3, FAMILY.observation_dim))).all()
