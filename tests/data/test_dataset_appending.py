"""Adding to a dataset: what was there stays as it is, and an interrupted addition never counts."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptdiffuser.data import parts
from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.manifest import FILE_NAME
from promptdiffuser.data.parts import part_path, write_part
from promptdiffuser.data.storage import Storage
from promptdiffuser.data.store import Dataset, DatasetWriter, open_dataset
from promptdiffuser.errors import UserError
from promptdiffuser.tasks import FAMILIES
from tests.data.synthetic import assert_equal, columns_of, draw_episodes, encode, plant, write_dataset

FAMILY = FAMILIES["cheetah-vel"]
ROOT = Path(__file__).resolve().parents[2]
TASKS = (0, 7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "dataset", FAMILY, TASKS, episodes=3)
    return tmp_path / "dataset"


@pytest.fixture
def two_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a file hold two episodes at most."""
    monkeypatch.setattr(parts, "MAX_STEPS", 2 * FAMILY.horizon + 1)


def checksums(folder: Path) -> dict[str, str]:
    """Everything below a folder but what an interrupted write may leave: hidden files."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def numbers_in(folder: Path, name: str) -> list[int]:
    return pq.ParquetFile(folder / name).read()["episode"].to_pylist()


def more(tasks: list[int], seed: int = 99) -> Episodes:
    return draw_episodes(FAMILY, tasks, seed=seed)


def append(folder: Path, command: str, episodes: Episodes) -> Dataset:
    writer = DatasetWriter(folder, FAMILY, command, seed=5)
    writer.add("expert", episodes)
    return writer.commit()


@pytest.mark.usefixtures("two_a_file")
def test_many_episodes_are_cut_into_files_of_bounded_size(tmp_path: Path) -> None:
    episodes = more([7, 0, 7, 7, 7, 0, 7])
    writer = DatasetWriter(tmp_path, FAMILY, "a test")
    writer.add("medium", episodes)
    dataset = writer.commit()
    names = {part_path(7, "medium", number): numbers for number, numbers in enumerate(([0, 1], [2, 3], [4]))}
    names[part_path(0, "medium", 0)] = [0, 1]
    assert {name: numbers_in(tmp_path, name) for name in dataset.manifest.files} == names
    assert [name for name, _ in dataset.files([7], "medium")] == [part_path(7, "medium", n) for n in range(3)]
    for task in TASKS:
        assert_equal(dataset.read([task], "medium"), episodes.select(episodes.tasks == task))


@pytest.mark.usefixtures("two_a_file")
def test_more_than_ten_files_are_read_in_the_order_of_their_episodes(tmp_path: Path) -> None:
    episodes = more([7] * 23)
    writer = DatasetWriter(tmp_path, FAMILY, "a test")
    writer.add("medium", episodes)
    assert_equal(writer.commit().read([7], "medium"), episodes)


@pytest.mark.usefixtures("two_a_file")
@pytest.mark.parametrize("times", [1, 2])
def test_episodes_with_equal_seeds_get_different_ones_in_every_order_of_adding(
    folder: Path, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    before = open_dataset(folder).read([7]).seeds.tolist()
    added = more([7, 7, 7, 0, 7])
    added.seeds[:] = [11, before[0], 11, 11, 12]
    assert append(folder, "the second", added).read([0]).seeds.tolist()[-1] == 11, "another task may have it"
    if times == 2:
        append(folder, "the third", added)
    seeds = open_dataset(folder).read([7]).seeds.tolist()
    assert len(set(seeds)) == len(seeds) == 3 + 4 * times
    assert seeds[:4] == [*before, 11]
    assert seeds[6] == 12
    (warning, *_) = caplog.messages
    assert warning.startswith(f"{folder}: 2 of 4 expert episodes of task 7 have the seed of an earlier one")
    assert len(caplog.messages) == (1 if times == 1 else 3)


def test_equal_seeds_in_a_dataset_are_said_when_it_is_opened(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_dataset(folder)
    assert not caplog.messages
    episodes = open_dataset(folder).read([7])
    plant(folder, part_path(7, "expert", 0), encode(columns_of(replace(episodes, seeds=episodes.seeds * 0))))
    open_dataset(folder)
    (warning,) = caplog.messages
    assert warning.startswith(f"{folder}: 2 of 3 expert episodes of task 7 have the seed of another")


def test_appending_adds_files_and_touches_none(folder: Path) -> None:
    before, earlier = open_dataset(folder), checksums(folder)
    added = more([7, 9, 7])
    after = append(folder, "the second", added)

    new = {part_path(7, "expert", 1): [3, 4], part_path(9, "expert", 0): [0]}
    later = checksums(folder)
    assert later.keys() - earlier.keys() == new.keys()
    assert {name for name in earlier if later[name] != earlier[name]} == {FILE_NAME}
    assert {name: numbers_in(folder, name) for name in new} == new
    assert after.manifest.files.items() >= before.manifest.files.items()
    assert after.manifest.commands == ("a test", "the second")
    assert after.manifest.seed == before.manifest.seed
    assert list(after.manifest.tasks) == [0, 7, 9]
    assert after.manifest.digest != before.manifest.digest
    assert open_dataset(folder).manifest == after.manifest

    of_7 = added.select(added.tasks == 7)
    assert_equal(after.read([7]), Episodes.concatenate([before.read([7]), of_7]))
    assert_equal(after.read([0]), before.read([0]))
    assert_equal(after.read([7], "random"), before.read([7], "random"))
    assert_equal(after.read([9]), added.select(added.tasks == 9))


def test_appending_twice_numbers_on(folder: Path) -> None:
    for command in ("second", "third"):
        writer = DatasetWriter(folder, FAMILY, command)
        writer.add("expert", more([7]))
        writer.add("expert", more([7]))
        writer.commit()
    names = [part_path(7, "expert", number) for number in range(5)]
    assert [numbers_in(folder, name) for name in names] == [[0, 1, 2], [3], [4], [5], [6]]
    assert open_dataset(folder).manifest.commands == ("a test", "second", "third")


def test_nothing_counts_before_commit(folder: Path) -> None:
    before = open_dataset(folder)
    writer = DatasetWriter(folder, FAMILY, "never finished")
    writer.add("expert", more([7, 9]))
    between = open_dataset(folder)
    assert between.manifest == before.manifest
    assert_equal(between.read([7]), before.read([7]))
    with pytest.raises(UserError, match=r"no expert episodes of task\(s\) \[9\]"):
        between.read([9])
    # Whoever appends next replaces what the abandoned writer left.
    after = append(folder, "the second", more([7], seed=1))
    assert_equal(after.read([7]), Episodes.concatenate([before.read([7]), more([7], seed=1)]))
    assert 9 not in after.manifest.tasks


def test_new_folder_is_no_dataset_before_commit(tmp_path: Path) -> None:
    DatasetWriter(tmp_path, FAMILY, "never finished").add("expert", more([7]))
    with pytest.raises(UserError, match=r"no manifest\.json"):
        open_dataset(tmp_path)


def test_files_that_the_manifest_does_not_list_are_no_part_of_it(folder: Path) -> None:
    before = open_dataset(folder)
    write_part(Storage.at(folder), FAMILY, "expert", 1, more([7]), first_episode=3)
    (folder / part_path(7, "expert", 2)).write_bytes(b"no Parquet")
    (folder / "task=7" / "notes.txt").write_text("mine")
    after = open_dataset(folder)
    assert after.manifest == before.manifest
    assert_equal(after.read([7]), before.read([7]))


class InterruptedWriteError(Exception):
    """Stands for whatever ends a process in the middle of a write."""


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Break off every write of a file whose path holds `target[0]`, when some of it is on disk."""
    target = ["nothing"]
    write = Storage.writing

    @contextmanager
    def breaking(storage: Storage, name: str) -> Iterator[pa.NativeFile]:
        with write(storage, name) as file:
            yield file
            if target[0] in name:
                file.flush()
                raise InterruptedWriteError

    monkeypatch.setattr(Storage, "writing", breaking)
    return target


@pytest.mark.parametrize("broken", [part_path(7, "expert", 2), FILE_NAME])
@pytest.mark.usefixtures("two_a_file")
def test_interrupted_write_leaves_the_dataset_as_it_was(folder: Path, interrupt: list[str], broken: str) -> None:
    before, earlier = open_dataset(folder), checksums(folder)
    interrupt[0] = broken
    with pytest.raises(InterruptedWriteError):
        append(folder, "the second", more([0, 7, 7, 7]))
    assert broken == FILE_NAME or broken not in checksums(folder), "a half-written file must not bear its name"
    assert checksums(folder).items() >= earlier.items()
    assert open_dataset(folder).manifest == before.manifest

    interrupt[0] = "nothing"
    after = append(folder, "the third", more([0, 7, 7, 7]))
    assert_equal(after.read([7]), Episodes.concatenate([before.read([7]), more([0, 7, 7, 7]).select(slice(1, 4))]))
    assert after.manifest.commands == ("a test", "the third")


APPEND_FOR_EVER = """
import sys
from promptdiffuser.data.store import DatasetWriter
from promptdiffuser.tasks import FAMILIES
from tests.data.synthetic import draw_episodes

family = FAMILIES["cheetah-vel"]
writer = DatasetWriter(sys.argv[1], family, "killed")
while True:
    writer.add("expert", draw_episodes(family, [7] * 20))
    print("added", flush=True)
"""


def test_killed_process_leaves_a_dataset_that_opens(folder: Path) -> None:
    before, earlier = open_dataset(folder), checksums(folder)
    process = subprocess.Popen(
        [sys.executable, "-c", APPEND_FOR_EVER, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}"},
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["added\n"] * 2
    process.send_signal(signal.SIGKILL)  # somewhere in the third addition
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    after = checksums(folder)
    assert part_path(7, "expert", 2) in after, "the process was to be killed when it had written something"
    assert after.items() >= earlier.items()
    assert open_dataset(folder).manifest == before.manifest
    assert_equal(append(folder, "the second", more([7])).read([7]), Episodes.concatenate([before.read([7]), more([7])]))


def test_refused_episodes_leave_the_dataset_as_it_was(folder: Path) -> None:
    before, earlier = open_dataset(folder), checksums(folder)
    bad = more([7])
    bad.rewards[0, 5] = float("nan")
    writer = DatasetWriter(folder, FAMILY, "the second")
    with pytest.raises(UserError, match="rewards of episode 0 are not finite at step 5; nothing was written"):
        writer.add("expert", bad)
    assert checksums(folder) == earlier
    assert writer.commit().manifest.files == before.manifest.files


def test_refused_commit_leaves_the_dataset_as_it_was(folder: Path) -> None:
    """A file that another process wrote is damaged before it is taken in."""
    before = open_dataset(folder)
    writer = DatasetWriter(folder, FAMILY, "the second")
    name, record = write_part(writer.storage, FAMILY, "expert", 1, more([7]), first_episode=3)
    (folder / name).write_bytes(b"no Parquet")
    writer.adopt(name, record)
    with pytest.raises(UserError, match=f"{name} has another digest"):
        writer.commit()
    assert open_dataset(folder).manifest == before.manifest


def test_file_written_elsewhere_is_taken_in(folder: Path) -> None:
    before = open_dataset(folder)
    writer = DatasetWriter(folder, FAMILY, "the second")
    writer.adopt(*write_part(Storage.at(folder), FAMILY, "expert", 1, more([7]), first_episode=3))
    assert_equal(writer.commit().read([7]), Episodes.concatenate([before.read([7]), more([7])]))


def test_other_family_is_refused(folder: Path) -> None:
    earlier = checksums(folder)
    with pytest.raises(UserError, match="holds cheetah-vel, cheetah-dir cannot be added to it") as refusal:
        DatasetWriter(folder, FAMILIES["cheetah-dir"], "a test")
    assert str(folder) in str(refusal.value)
    assert checksums(folder) == earlier


def test_damaged_dataset_is_not_added_to(folder: Path) -> None:
    episodes = open_dataset(folder).read([7])
    episodes.actions[2, 10, 1] = float("inf")
    plant(folder, part_path(7, "expert", 0), encode(columns_of(episodes)))
    with pytest.raises(UserError, match="actions of episode 2 are not finite at step 10"):
        DatasetWriter(folder, FAMILY, "a test")
