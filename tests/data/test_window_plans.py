"""Window plans: within the index, uniform, the same for whoever draws them, and the rounds of large datasets."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptdiffuser.data.plans import EpisodeIndex, FileSize, Planner, Rounds, RoundsConfig

INDEX = EpisodeIndex(np.array([0, 0, 0, 1, 1, 4, 4, 4]), np.array([30, 7, 1, 30, 12, 20, 29, 6]))


@st.composite
def indices(draw: st.DrawFn) -> EpisodeIndex:
    tasks = sorted(draw(st.lists(st.integers(0, 6), min_size=1, max_size=20)))
    lengths = draw(st.lists(st.integers(1, 40), min_size=len(tasks), max_size=len(tasks)))
    return EpisodeIndex(np.array(tasks, np.int64), np.array(lengths, np.int64))


def fields_equal(left: object, right: object) -> bool:
    return all(np.array_equal(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(left))


@settings(max_examples=80, deadline=None)
@given(index=indices(), batch=st.integers(1, 50), num_context=st.integers(0, 4), step=st.integers(0, 10**6))
def test_plan_stays_within_the_index_and_the_task(index: EpisodeIndex, batch: int, num_context: int, step: int) -> None:
    plan = Planner(index, batch, 7, (0, "pretrain"), num_context).at(step)
    assert plan.episodes.shape == plan.starts.shape == plan.prompt_episodes.shape == (batch,)
    assert plan.context_episodes.shape == (batch, num_context)
    for episodes in (plan.episodes, plan.prompt_episodes, plan.context_episodes):
        assert ((episodes >= 0) & (episodes < len(index.tasks))).all()
    assert ((plan.starts >= 0) & (plan.starts < index.lengths[plan.episodes])).all()
    tasks = index.tasks[plan.episodes]
    assert np.array_equal(index.tasks[plan.prompt_episodes], tasks)
    assert (index.tasks[plan.context_episodes] == tasks[:, None]).all()
    assert fields_equal(plan, Planner(index, batch, 7, (0, "pretrain"), num_context).at(step))
    expected_steps = sum(
        min(7, int(index.lengths[e]) - int(s)) for e, s in zip(plan.episodes, plan.starts, strict=True)
    )
    assert plan.steps(index) == expected_steps


def test_plans_at_different_addresses_differ() -> None:
    plans = [
        Planner(INDEX, 32, 8, address, 3).at(step)
        for address, step in [((0, "dm"), 5), ((0, "dm"), 6), ((1, "dm"), 5), ((0, "dt"), 5)]
    ]
    for number, plan in enumerate(plans):
        assert not any(fields_equal(plan, other) for other in plans[:number])


def test_tasks_are_uniform_even_if_one_has_many_more_episodes() -> None:
    tasks = np.array([0] * 500 + [1] + [2] * 10, np.int64)
    index = EpisodeIndex(tasks, np.full(len(tasks), 20, np.int64))
    plan = Planner(index, 30_000, 5, ("uniform",)).at(0)
    shares = np.bincount(tasks[plan.episodes]) / 30_000
    np.testing.assert_allclose(shares, 1 / 3, atol=0.015)  # five standard deviations


def test_every_step_of_a_task_is_drawn_equally_often() -> None:
    index = EpisodeIndex(np.array([3, 3], np.int64), np.array([12, 4], np.int64))
    plan = Planner(index, 32_000, 5, ("steps",), 1).at(0)
    counts = np.bincount(plan.starts + 12 * plan.episodes, minlength=16)
    np.testing.assert_allclose(counts, 2_000, atol=250)  # more than five standard deviations
    prompts = np.bincount(plan.prompt_episodes) / 32_000
    np.testing.assert_allclose(prompts, 0.5, atol=0.02)  # prompts do not depend on the episodes' lengths
    context = np.bincount(plan.context_episodes.ravel()) / 32_000
    np.testing.assert_allclose(context, 0.5, atol=0.02)


def test_index_must_be_grouped_by_task() -> None:
    with pytest.raises(ValueError, match="ascending"):
        EpisodeIndex(np.array([1, 0]), np.array([5, 5]))


def test_whole_episodes_start_at_their_first_step_and_are_drawn_equally_often() -> None:
    index = EpisodeIndex(np.array([3, 3], np.int64), np.array([12, 4], np.int64))
    plan = Planner(index, 30_000, None, ("whole",)).at(0)
    assert (plan.starts == 0).all()
    assert plan.window_steps == 12
    assert plan.steps(index) == index.lengths[plan.episodes].sum()
    np.testing.assert_allclose(np.bincount(plan.episodes) / 30_000, 0.5, atol=0.015)


def large_planner(files_of: list[int], files: int, updates: int = 3) -> Planner:
    """Return the planner of a dataset with some files of each task, three episodes a file, and rounds of `files`."""
    tasks = np.repeat(np.arange(len(files_of)), files_of)
    index = EpisodeIndex(np.repeat(tasks, 3), np.full(3 * len(tasks), 20, np.int64))
    sizes = tuple(FileSize(int(task), 3, 60) for task in tasks)
    return Planner(index, 40, 5, (0, "pretrain"), rounds=Rounds(RoundsConfig(60 * files, updates), sizes))


def epoch_of(planner: Planner, number: int) -> list[tuple[int, ...]]:
    """Return the files of every round of an epoch."""
    per_epoch = planner.rounds.per_epoch
    return [planner.rounds.files(number * per_epoch + place, planner.address) for place in range(per_epoch)]


def test_a_round_draws_histories_from_its_files_and_prompts_from_all() -> None:
    planner = large_planner([2] * 5, files=4)
    members = planner.rounds.episodes(2, planner.address, planner.index)
    assert len(members) in (9, 12)
    plans = [planner.at(step) for step in (6, 7, 8)]
    assert set(np.concatenate([plan.episodes for plan in plans])) <= set(members)
    assert not set(np.concatenate([plan.prompt_episodes for plan in plans])) <= set(members)
    for plan in plans:
        assert np.array_equal(planner.index.tasks[plan.prompt_episodes], planner.index.tasks[plan.episodes])


def test_every_epoch_of_rounds_goes_through_all_files_once_in_another_order() -> None:
    planner = large_planner([2] * 5, files=4)
    assert planner.rounds.per_epoch == 3
    epochs = [epoch_of(planner, number) for number in range(4)]
    for rounds in epochs:
        assert sorted(file for files in rounds for file in files) == list(range(10))
        assert max(map(len, rounds)) <= 4
    assert len({str(rounds) for rounds in epochs}) > 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 30), st.integers(0, 3))
@settings(deadline=None)
def test_every_round_covers_every_task_as_evenly_as_possible(files_of: list[int], files: int, epoch: int) -> None:
    planner = large_planner(files_of, files)
    tasks, rounds = np.array([size.task for size in planner.rounds.sizes]), epoch_of(planner, epoch)
    assert sorted(file for of_round in rounds for file in of_round) == list(range(len(tasks)))
    assert max(map(len, rounds)) <= files
    counts = np.array([np.bincount(tasks[list(of_round)], minlength=len(files_of)) for of_round in rounds])
    # Shares of a round may lack a file that lies at its edge.
    assert (np.abs(counts - np.array(files_of) / len(rounds)) < 2).all()
    if len(set(files_of)) == 1:
        assert np.ptp(counts, axis=0).max() <= 1


def test_tasks_take_turns_where_a_round_cannot_hold_a_file_of_each() -> None:
    planner = large_planner([1] * 12, files=4)
    for number in (0, 1):
        assert sorted(len(of_round) for of_round in epoch_of(planner, number)) == [4, 4, 4]
    drawn = [set(planner.index.tasks[planner.at(step).episodes].tolist()) for step in (0, 3, 6)]
    assert set.union(*drawn) == set(range(12))


def test_a_round_is_as_large_as_the_memory_that_it_may_take() -> None:
    sizes = (*(FileSize(task, 1, 50 + task) for task in range(20)), FileSize(20, 1, 100))
    rounds = Rounds(RoundsConfig(env_steps=350), sizes)
    for number in range(2 * rounds.per_epoch):
        assert sum(sizes[file].env_steps for file in rounds.files(number, (0, "test"))) <= 350
    assert rounds.settings == {"env_steps": 350, "updates": 200}
    one_by_one = Rounds(RoundsConfig(env_steps=10), sizes)
    assert all(len(one_by_one.files(number, (0, "test"))) == 1 for number in range(21))


@pytest.mark.parametrize("is_streamed", [True, False])
def test_data_that_one_round_holds_is_drawn_from_as_a_whole_at_every_step(is_streamed: bool) -> None:
    """Small data is not touched by rounds: its plans are those without them."""
    planner = large_planner([2] * 5, files=10)
    rounds = planner.rounds if is_streamed else dataclasses.replace(planner.rounds, sizes=())
    assert rounds.settings is None
    default = dataclasses.replace(planner, rounds=Rounds())
    for step in (0, 4, 1_000):
        assert fields_equal(dataclasses.replace(planner, rounds=rounds).at(step), default.at(step))


def test_rounds_of_other_data_are_refused() -> None:
    with pytest.raises(ValueError, match="hold 9 episodes, the index has 8"):
        Planner(INDEX, 4, 5, (0,), rounds=Rounds(sizes=(FileSize(0, 3, 60),) * 3))


@pytest.mark.parametrize("values", [{"env_steps": 0}, {"updates": 0}])
def test_impossible_rounds_are_refused_by_name(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"rounds\.{next(iter(values))}"):
        RoundsConfig(**values)
