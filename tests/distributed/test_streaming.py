"""Streamed windows are those of resident tensors, bit by bit, for any number of workers and from any update on."""

import dataclasses

import numpy as np
import pytest
import torch

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.plans import EpisodeIndex, Planner, Rounds, RoundsConfig
from promptdiffuser.data.store import Dataset, DatasetWriter
from promptdiffuser.data.windows import ResidentEpisodes, Segments
from promptdiffuser.distributed.datasets import share_of
from promptdiffuser.distributed.streaming import StreamedWindows, WindowCutter
from promptdiffuser.tasks import FAMILIES
from tests.data.synthetic import draw_episodes

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
CPU = torch.device("cpu")
FAMILY = FAMILIES["cheetah-vel"]
TASKS, UPDATES = (0, 1, 3, 5), 11
LARGEST = 3 * FAMILY.horizon
"""Environment steps that a file has at most."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Write two files a task, of three and two episodes, some of them short."""
    writer = DatasetWriter(tmp_path_factory.mktemp("files") / "dataset", FAMILY, "tests", seed=0)
    rng = np.random.default_rng(0)
    for count in (3, 2):
        tasks = np.repeat(TASKS, count).tolist()
        writer.add("expert", draw_episodes(FAMILY, tasks, rng.integers(1, FAMILY.horizon + 1, len(tasks)).tolist()))
    return writer.commit()


def planner_of(dataset: Dataset, window_steps: int | None, rounds: RoundsConfig) -> Planner:
    episodes = dataset.read(TASKS)
    records = [record for _, record in dataset.files(TASKS)]
    assert [record.episodes for record in records] == [3, 2] * len(TASKS)
    index = EpisodeIndex(episodes.tasks, episodes.lengths)
    return Planner(index, 9, window_steps, (7, "stream"), rounds=Rounds.over(rounds, records))


@pytest.mark.parametrize(
    ("window_steps", "rounds", "workers", "first"),
    [
        (6, RoundsConfig(env_steps=10**6, updates=4), 1, 0),
        (6, RoundsConfig(env_steps=3 * LARGEST, updates=4), 2, 0),
        (6, RoundsConfig(env_steps=3 * LARGEST, updates=4), 2, 6),
        (None, RoundsConfig(env_steps=5 * LARGEST, updates=3), 1, 2),
    ],
    ids=["one-round", "two-workers", "from-inside-a-round", "whole-episodes"],
)
def test_streamed_windows_equal_resident_ones(
    dataset: Dataset, window_steps: int | None, rounds: RoundsConfig, workers: int, first: int
) -> None:
    planner, episodes = planner_of(dataset, window_steps, rounds), dataset.read(TASKS)
    normaliser = Normaliser.fit([episodes], FAMILY.return_scale)
    resident = ResidentEpisodes.build(episodes, np.arange(len(episodes)), normaliser, CPU)
    files = tuple((name, record.task) for name, record in dataset.files(TASKS))
    streams = [
        StreamedWindows(
            WindowCutter(dataset.storage, files, planner, normaliser, share_of(len(episodes), rank, workers)),
            UPDATES,
            FAMILY.action_dim,
            CPU,
        )
        for rank in range(workers)
    ]
    for step in range(first, UPDATES):
        plan = planner.at(step)
        _, expected = resident.windows(step, plan)
        seen = []
        for stream in streams:
            rows, windows = stream.windows(step, plan)
            assert np.array_equal(rows, stream.held(plan))
            for field in dataclasses.fields(Segments):
                streamed, whole = getattr(windows, field.name), getattr(expected, field.name)[rows]
                assert streamed.dtype == whole.dtype
                assert torch.equal(streamed, whole), (step, field.name)
            seen += rows.tolist()
        assert sorted(seen) == list(range(9))


def test_updates_that_are_not_asked_for_in_order_are_noticed(dataset: Dataset) -> None:
    planner, episodes = planner_of(dataset, 6, RoundsConfig()), dataset.read(TASKS)
    normaliser = Normaliser.fit([episodes], FAMILY.return_scale)
    files = tuple((name, record.task) for name, record in dataset.files(TASKS))
    cutter = WindowCutter(dataset.storage, files, planner, normaliser, range(len(episodes)))
    stream = StreamedWindows(cutter, UPDATES, FAMILY.action_dim, CPU)
    stream.windows(0, planner.at(0))
    with pytest.raises(RuntimeError, match="not at update 2"):
        stream.windows(2, planner.at(2))
