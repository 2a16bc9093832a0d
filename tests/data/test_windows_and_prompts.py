"""Gathered segments and prompt pools, against naive row-by-row implementations."""

import dataclasses

import numpy as np
import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.plans import EpisodeIndex, Planner, WindowPlan
from promptdiffuser.data.windows import PromptPool, ResidentEpisodes, Segments, cut_pool_pieces
from promptdiffuser.errors import UserError
from promptdiffuser.tasks import FAMILIES
from tests.data.synthetic import draw_episodes

FAMILY = dataclasses.replace(FAMILIES["cheetah-vel"], observation_dim=4, action_dim=2, horizon=30)
CPU = torch.device("cpu")
LENGTHS = [30, 7, 1, 30, 12, 20, 29, 6]
EPISODES = draw_episodes(FAMILY, [0, 0, 0, 1, 1, 4, 4, 4], LENGTHS)
NORMALISER = Normaliser.fit([EPISODES], FAMILY.return_scale)
INDEX = EpisodeIndex(EPISODES.tasks, EPISODES.lengths)


def resident(episodes: Episodes = EPISODES, numbers: np.ndarray | None = None) -> ResidentEpisodes:
    numbers = np.arange(len(episodes)) if numbers is None else numbers
    return ResidentEpisodes.build(episodes, numbers, NORMALISER, CPU, len(EPISODES))


def fields_equal(left: object, right: object) -> bool:
    pairs = [(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(left)]
    return all(
        torch.equal(mine, other) if isinstance(mine, torch.Tensor) else np.array_equal(mine, other)
        for mine, other in pairs
    )


def naive_window(episode: int, start: int, num_steps: int) -> dict[str, list]:
    """One window as Python lists, step by step; padding on the right is zero."""
    mean, std = NORMALISER.state_mean.tolist(), NORMALISER.state_std.tolist()
    window: dict[str, list] = {f.name: [] for f in dataclasses.fields(Segments)}
    rewards = [float(r) for r in EPISODES.rewards[episode]]
    for step in range(start, start + num_steps):
        valid = step < EPISODES.lengths[episode]
        window["valid"].append(valid)
        window["timesteps"].append(step if valid else 0)
        if valid:
            window["returns_to_go"].append(sum(rewards[step:]) / FAMILY.return_scale)
            state = EPISODES.observations[episode, step]
            window["states"].append([(float(x) - m) / s for x, m, s in zip(state, mean, std, strict=True)])
            window["actions"].append(EPISODES.actions[episode, step].tolist())
            window["rewards"].append((rewards[step] - float(NORMALISER.reward_mean)) / float(NORMALISER.reward_std))
        else:
            window["returns_to_go"].append(0.0)
            window["states"].append([0.0] * FAMILY.observation_dim)
            window["actions"].append([0.0] * FAMILY.action_dim)
            window["rewards"].append(0.0)
    return window


@pytest.mark.parametrize("num_steps", [1, 5, 30])
def test_segments_equal_a_naive_implementation(num_steps: int) -> None:
    plan = Planner(INDEX, 64, num_steps, ("segments",)).at(num_steps)
    # Besides drawn rows: the first and the last step of every episode.
    episodes = np.concatenate([plan.episodes, np.arange(len(EPISODES)), np.arange(len(EPISODES))])
    starts = np.concatenate([plan.starts, np.zeros(len(EPISODES), np.int64), EPISODES.lengths - 1])
    gathered = resident().segments(episodes, starts, num_steps)
    for row, (episode, start) in enumerate(zip(episodes, starts, strict=True)):
        naive = naive_window(int(episode), int(start), num_steps)
        assert gathered.valid[row].tolist() == naive["valid"]
        assert gathered.timesteps[row].tolist() == naive["timesteps"]
        for name in ("returns_to_go", "states", "actions", "rewards"):
            np.testing.assert_allclose(getattr(gathered, name)[row], naive[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert plan.steps(INDEX) == int(gathered.valid[: len(plan.episodes)].sum())


def test_shards_partition_a_plan_and_gather_the_same_windows() -> None:
    plan = Planner(INDEX, 100, 8, ("shards",)).at(0)
    _, whole = resident().windows(0, plan)
    seen: list[int] = []
    for number in range(3):
        numbers = np.arange(len(EPISODES))[number::3][::-1].copy()  # in any order
        shard = resident(EPISODES.select(numbers), numbers)
        rows, windows = shard.windows(0, plan)
        assert set(plan.episodes[rows]) <= set(numbers)
        assert fields_equal(windows, whole.select(torch.from_numpy(rows)))
        seen += rows.tolist()
    assert sorted(seen) == list(range(100))


def test_shard_without_any_row_of_a_plan_gathers_nothing() -> None:
    nothing = np.zeros(4, np.int64)
    plan = WindowPlan(nothing, nothing, nothing, np.zeros((4, 0), np.int64), window_steps=8)
    numbers = np.array([5, 6])
    shard = resident(EPISODES.select(numbers), numbers)
    rows, windows = shard.windows(0, plan)
    assert len(rows) == 0
    assert windows.states.shape == (0, 8, FAMILY.observation_dim)


def test_prompt_is_the_last_five_steps_excluding_the_very_last() -> None:
    family = FAMILIES["cheetah-vel"]
    episodes = draw_episodes(family, [7, 7], [200, 150])
    pieces = cut_pool_pieces(episodes, prompt_length=5, num_transitions=3)
    assert pieces["prompt_timesteps"].tolist() == [[194, 195, 196, 197, 198], [144, 145, 146, 147, 148]]
    assert np.array_equal(pieces["prompt_observations"][0], episodes.observations[0, 194:199])
    assert np.array_equal(pieces["prompt_actions"][1], episodes.actions[1, 144:149])
    assert np.array_equal(pieces["prompt_rewards"][0], episodes.rewards[0, 194:199])
    to_go = [float(episodes.rewards[1, step:].sum(dtype=np.float64)) for step in range(144, 149)]
    np.testing.assert_allclose(pieces["prompt_returns_to_go"][1], to_go, rtol=1e-5)


def test_too_short_episode_is_refused_by_name() -> None:
    fitting = draw_episodes(FAMILY, [3, 4], [30, 6])
    assert cut_pool_pieces(fitting, 5, 2)["prompt_timesteps"].tolist()[1] == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="episode of task 4 has 5 steps, a prompt of 5 needs 6"):
        cut_pool_pieces(draw_episodes(FAMILY, [3, 4], [30, 5]), 5, 2)


def test_transitions_are_steps_of_the_episode_whatever_else_is_in_the_pool() -> None:
    episodes = EPISODES.select(EPISODES.lengths > 5)
    whole = cut_pool_pieces(episodes, 5, 50)
    alone = [cut_pool_pieces(episodes.select(np.array([row])), 5, 50) for row in range(len(episodes))]
    for name, values in whole.items():
        assert np.array_equal(values, np.concatenate([pieces[name] for pieces in alone])), name
    for row, length in enumerate(episodes.lengths):
        places = {
            (*o.tolist(), *a.tolist(), float(r)): step
            for step, (o, a, r) in enumerate(
                zip(episodes.observations[row], episodes.actions[row], episodes.rewards[row], strict=True)
            )
            if step < length
        }
        drawn = [
            places[(*o.tolist(), *a.tolist(), float(r))]  # fails unless all three are of one valid step
            for o, a, r in zip(
                whole["transition_observations"][row],
                whole["transition_actions"][row],
                whole["transition_rewards"][row],
                strict=True,
            )
        ]
        assert len(set(drawn)) > min(length, 50) / 3


def test_pool_holds_normalised_prompts_and_transitions() -> None:
    episodes = EPISODES.select(EPISODES.lengths > 5)
    pieces = cut_pool_pieces(episodes, 5, 6)
    pool = PromptPool.build(pieces, NORMALISER, CPU)
    numbers = np.flatnonzero(EPISODES.lengths > 5)
    starts = EPISODES.lengths[numbers] - 6
    expected = resident().segments(numbers, starts, 5)
    for field in dataclasses.fields(Segments):
        np.testing.assert_allclose(
            getattr(pool.prompts, field.name), getattr(expected, field.name), atol=1e-6, err_msg=field.name
        )
    assert np.array_equal(pool.index.tasks, episodes.tasks)
    assert np.array_equal(pool.index.lengths, episodes.lengths)
    states = (pieces["transition_observations"] - NORMALISER.state_mean.numpy()) / NORMALISER.state_std.numpy()
    rewards = (pieces["transition_rewards"] - float(NORMALISER.reward_mean)) / float(NORMALISER.reward_std)
    transitions = np.concatenate([states, pieces["transition_actions"], rewards[..., None]], axis=-1)
    np.testing.assert_allclose(pool.transitions, transitions, rtol=1e-4, atol=1e-5)

    contexts = pool.contexts_at(np.array([[0, 2], [1, 1]]))
    assert torch.equal(contexts[0], torch.cat([pool.transitions[0], pool.transitions[2]]))
    assert torch.equal(contexts[1], torch.cat([pool.transitions[1], pool.transitions[1]]))
    assert fields_equal(pool.prompts_at(np.array([3, 1])), pool.prompts.select(torch.tensor([3, 1])))
