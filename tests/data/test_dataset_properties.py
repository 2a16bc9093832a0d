"""Any episodes are read back bit by bit, and no change of any byte of a dataset goes unseen."""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from promptdiffuser.data import parts
from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.manifest import FILE_NAME
from promptdiffuser.data.parts import find_fault, part_path
from promptdiffuser.data.store import Dataset, DatasetWriter, open_dataset
from promptdiffuser.errors import UserError
from promptdiffuser.tasks import FAMILIES
from tests.data.synthetic import assert_equal, columns_of, draw_episodes, encode, plant

FAMILY = dataclasses.replace(FAMILIES["cheetah-vel"], observation_dim=3, action_dim=2, horizon=6)
TASKS = (0, 7, 26)
PART = part_path(7, "expert", 0)
EXTREMES = [np.finfo(np.float32).max, np.finfo(np.float32).min, np.finfo(np.float32).smallest_subnormal, -0.0]


@pytest.fixture(scope="module", autouse=True)
def small_family() -> Iterator[None]:
    """Make cheetah-vel small and let a file hold three episodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES.registered, FAMILY.name, FAMILY)
        patch.setattr(parts, "MAX_STEPS", 3 * FAMILY.horizon)
        yield


@st.composite
def trajectories(draw: st.DrawFn) -> Episodes:
    tasks = draw(st.lists(st.sampled_from(TASKS), min_size=1, max_size=10))
    count = len(tasks)
    lengths = draw(arrays(np.int64, count, elements=st.integers(1, FAMILY.horizon)))
    valid = np.arange(FAMILY.horizon) < lengths[:, None]
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(EXTREMES)

    def values(*shape: int) -> np.ndarray:
        drawn = draw(arrays(np.float32, (count, FAMILY.horizon, *shape), elements=numbers))
        return np.where(valid.reshape(count, FAMILY.horizon, *[1] * len(shape)), drawn, np.float32(0))

    return Episodes(
        tasks=np.array(tasks, np.int64),
        seeds=draw(arrays(np.int64, count, elements=st.integers(0, 2**63 - 1) | st.integers(0, 2))),
        lengths=lengths,
        successes=draw(arrays(bool, count)),
        observations=values(FAMILY.observation_dim),
        actions=values(FAMILY.action_dim),
        rewards=values(),
    )


def write(folder: str, batches: Sequence[Episodes]) -> None:
    writer = DatasetWriter(folder, FAMILY, "a test", seed=0)
    for batch in batches:
        writer.add("expert", batch)
    writer.commit()


@settings(max_examples=40, deadline=None)
@given(episodes=trajectories(), cuts=st.lists(st.integers(1, 9), max_size=4), appended=st.integers(0, 4))
def test_any_episodes_are_read_back_however_they_are_added(episodes: Episodes, cuts: list[int], appended: int) -> None:
    edges = [0, *sorted({cut for cut in cuts if cut < len(episodes)}), len(episodes)]
    batches = [episodes.select(slice(*edge)) for edge in pairwise(edges)]
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as pieces:
        write(whole, [episodes])
        write(pieces, batches[:appended])  # the rest is appended, perhaps to a dataset without episodes
        write(pieces, batches[appended:])
        for dataset in (open_dataset(whole), open_dataset(pieces)):
            assert list(dataset.manifest.tasks) == np.unique(episodes.tasks).tolist()
            for task in dataset.manifest.tasks:
                of_task = episodes.select(episodes.tasks == task)
                found = dataset.read([task])
                assert_equal(dataclasses.replace(found, seeds=of_task.seeds), of_task)
                _, first = np.unique(of_task.seeds, return_index=True)
                assert (found.seeds[first] == of_task.seeds[first]).all()
                assert len(np.unique(found.seeds)) == len(found)
                np.testing.assert_array_equal(found.seeds, open_dataset(whole).read([task]).seeds)
                assert dataset.manifest.best_return(task) == of_task.returns.max()
                records = [record for _, record in dataset.files([task])]
                assert all(record.episodes <= 3 for record in records)
                assert sum(record.episodes for record in records) == len(of_task)
                assert sum(record.steps for record in records) == of_task.lengths.sum()
                assert sum(record.successes for record in records) == of_task.successes.sum()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset of five files, changed and restored by the tests below."""
    path = tmp_path_factory.mktemp("properties") / "dataset"
    write(str(path), [draw_episodes(FAMILY, [0, 7, 7, 7, 7, 26], [6, 1, 2, 3, 4, 5])])
    return open_dataset(path)


FILES = [FILE_NAME, PART, part_path(7, "expert", 1), part_path(0, "expert", 0), part_path(26, "expert", 0)]


def check_change(dataset: Dataset, name: str, content: bytes, changed: bytes) -> None:
    """A changed file is refused; a manifest may also say the same, but for the commands, which are a note."""
    path = Path(dataset.location) / name
    path.write_bytes(changed)
    try:
        found = open_dataset(dataset.location).manifest
    except UserError as refusal:
        assert dataset.location in str(refusal)  # noqa: PT017 - it need not be refused
    else:
        assert name == FILE_NAME
        assert dataclasses.replace(found, commands=dataset.manifest.commands) == dataset.manifest
    finally:
        path.write_bytes(content)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(FILES), place=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_any_changed_byte_is_found(dataset: Dataset, name: str, place: int, flip: int) -> None:
    content = (Path(dataset.location) / name).read_bytes()
    changed = bytearray(content)
    changed[place % len(content)] ^= flip
    check_change(dataset, name, content, bytes(changed))


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(FILES), place=st.integers(0, 10**6))
def test_any_truncation_is_found(dataset: Dataset, name: str, place: int) -> None:
    content = (Path(dataset.location) / name).read_bytes()
    check_change(dataset, name, content, content[: place % len(content)])


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 10**6), flips=st.lists(st.integers(0, 255), min_size=1, max_size=4))
def test_damage_with_a_right_checksum_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: int, flips: list[int]
) -> None:
    """Whatever the bytes of a file are, opening it ends in a refusal by name or in episodes that fit the family."""
    path = tmp_path_factory.getbasetemp() / "right-checksum"
    if not path.exists():
        write(str(path), [draw_episodes(FAMILY, [7, 7, 7], [6, 1, 2])])
    content = bytearray(encode(columns_of(draw_episodes(FAMILY, [7, 7, 7], [6, 1, 2]))))
    for offset, flip in enumerate(flips):
        content[(place + offset) % len(content)] ^= flip
    plant(path, PART, bytes(content))
    try:
        dataset = open_dataset(path)
    except UserError as refusal:
        assert PART in str(refusal)  # noqa: PT017 - it need not be refused
    else:
        assert find_fault(FAMILY, dataset.read([7])) is None
