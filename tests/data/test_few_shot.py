"""Which episodes of a target task a method may see."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.store import open_dataset
from promptdiffuser.errors import UserError
from promptdiffuser.tasks import FAMILIES
from tests.data.synthetic import assert_equal, draw_episodes, write_dataset

FAMILY = FAMILIES["cheetah-vel"]
SMALL = dataclasses.replace(FAMILY, observation_dim=1, action_dim=1, horizon=2)


def with_returns(returns: list[float]) -> Episodes:
    episodes = draw_episodes(SMALL, [7] * len(returns))
    half = np.array(returns, np.float32)[:, None] / 2
    return dataclasses.replace(episodes, rewards=np.concatenate([half, half], axis=1))


def chosen(returns: list[float], config: FewShotConfig) -> list[int]:
    """Return the rows that were chosen; the drawn seeds tell the episodes apart."""
    episodes = with_returns(returns)
    few = config.choose(episodes)
    rows = [episodes.seeds.tolist().index(seed) for seed in few.seeds.tolist()]
    assert_equal(few, episodes.select(np.array(rows, np.intp)))
    assert_equal(config.others(episodes), episodes.select(~np.isin(np.arange(len(returns)), rows)))
    return rows


@pytest.mark.parametrize(
    ("returns", "which", "rows"),
    [
        ([5, 1, 4, 2, 3], "any", [0, 1]),
        ([5, 1, 4, 2, 3], "low", [1, 3]),
        ([5, 1, 4, 2, 3], "middle", [3, 4]),
        ([5, 1, 4, 2, 3, 0], "middle", [3, 4]),
        ([5, 1, 4, 2, 3], "high", [0, 2]),
        ([-1, -5, -1, -5, -3], "high", [0, 2]),
        ([1, 1, 1, 1, 1], "low", [0, 1]),
        ([1, 1, 1, 1, 1], "middle", [1, 2]),
        ([1, 1, 1, 1, 1], "high", [3, 4]),
        ([2, 1, 2, 1, 1], "low", [1, 3]),  # of equal returns, the earlier ones are the lower
        ([2, 1, 2, 1, 2], "high", [2, 4]),
        ([9, 8], "low", [0, 1]),
    ],
)
def test_two_episodes_are_chosen(returns: list[float], which: str, rows: list[int]) -> None:
    assert chosen(returns, FewShotConfig(episodes=2, returns=which)) == rows


@settings(max_examples=60, deadline=None)
@given(
    returns=st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12),
    wanted=st.integers(1, 14),
    which=st.sampled_from(["any", "low", "middle", "high"]),
)
def test_choice_equals_a_sorted_list(returns: list[float], wanted: int, which: str) -> None:
    rows = chosen(returns, FewShotConfig(episodes=wanted, returns=which))
    ranked = sorted(range(len(returns)), key=lambda row: (returns[row], row))
    spare = max(0, len(returns) - wanted)
    expected = {
        "any": list(range(wanted))[: len(returns)],
        "low": ranked[:wanted],
        "middle": ranked[spare // 2 :][:wanted],
        "high": ranked[spare:],
    }[which]
    assert rows == sorted(expected)


def test_draws_are_sets_of_their_own() -> None:
    returns = [float(number) for number in range(12)]
    drawn = [chosen(returns, FewShotConfig(episodes=4, draw=draw)) for draw in range(6)]
    assert drawn[0] == [0, 1, 2, 3]
    assert all(len(set(rows)) == 4 for rows in drawn)
    assert len({tuple(rows) for rows in drawn}) == 6
    assert chosen(returns, FewShotConfig(episodes=4, draw=3)) == drawn[3]
    with pytest.raises(ValueError, match=r"few_shot\.draw 1 needs few_shot\.returns any"):
        FewShotConfig(draw=1, returns="low")


def test_set_of_no_episodes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"few_shot\.episodes must be at least 1, got 0"):
        FewShotConfig(episodes=0)


@pytest.mark.parametrize("which", ["any", "low", "middle", "high"])
def test_dataset_gives_every_task_its_own_set(tmp_path: Path, which: str) -> None:
    drawn = write_dataset(tmp_path, FAMILY, [2, 7], episodes=5)
    config = FewShotConfig(episodes=3, quality="random", returns=which)
    few = open_dataset(tmp_path).few_shot([7, 2], config)
    assert_equal(few, Episodes.concatenate([config.choose(drawn[task, "random"]) for task in (2, 7)]))


def test_too_few_episodes_are_refused_by_task_with_the_remedy(tmp_path: Path) -> None:
    write_dataset(tmp_path, FAMILY, [2, 7], episodes=3)
    with pytest.raises(UserError, match="has 3 expert episodes of task 2, a few-shot set needs 5") as refusal:
        open_dataset(tmp_path).few_shot([7, 2], FewShotConfig(episodes=5))
    assert str(tmp_path) in str(refusal.value)
    assert "--evaluation.few-shot.episodes" in str(refusal.value)
    with pytest.raises(UserError, match=r"has no medium episodes of task\(s\) \[2\]"):
        open_dataset(tmp_path).few_shot([2], FewShotConfig(episodes=1, quality="medium"))
