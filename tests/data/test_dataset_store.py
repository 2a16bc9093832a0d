"""The dataset folder: what is written is read back, and what cannot be trusted is refused by name."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.manifest import Manifest
from promptdiffuser.data.parts import MAX_STEPS, describe_part, episodes_per_part, part_path, read_part, write_part
from promptdiffuser.data.storage import Storage
from promptdiffuser.data.store import DatasetWriter, open_dataset
from promptdiffuser.errors import UserError
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.references import reference_returns
from tests.data.synthetic import (
    QUALITIES,
    assert_equal,
    columns_of,
    draw_episodes,
    encode,
    plant,
    write_dataset,
)

FAMILY = FAMILIES["cheetah-vel"]
TASKS = (0, 7, 26)
PART = part_path(7, "expert", 0)
REMEDIES = r"collect|restore it|install that version|make one with"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "dataset", FAMILY, TASKS)
    return tmp_path / "dataset"


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# Files


@pytest.mark.parametrize("lengths", [[200], [200, 200, 200], [1, 57, 200]])
def test_part_is_read_back_exactly(tmp_path: Path, lengths: list[int]) -> None:
    episodes, storage = draw_episodes(FAMILY, [7] * len(lengths), lengths), Storage.at(tmp_path)
    name, record = write_part(storage, FAMILY, "expert", 3, episodes, first_episode=10)
    assert name == "task=7/quality=expert/part-00003.parquet"
    assert files_below(tmp_path) == {name}
    assert_equal(read_part(storage, name, 7), episodes)
    assert record == describe_part(storage, name, 7, "expert", episodes)
    returns = episodes.returns
    assert (record.task, record.quality, record.episodes) == (7, "expert", len(lengths))
    assert (record.steps, record.successes) == (sum(lengths), np.count_nonzero(episodes.successes))
    assert (record.return_mean, record.return_min, record.return_max) == (returns.mean(), min(returns), max(returns))


def test_part_of_a_selection_is_read_back_exactly(tmp_path: Path) -> None:
    episodes = draw_episodes(FAMILY, [3] * 6).select(slice(None, None, 2))  # strided arrays
    storage = Storage.at(tmp_path)
    assert_equal(read_part(storage, write_part(storage, FAMILY, "expert", 0, episodes, 0)[0], 3), episodes)


def test_part_holds_one_task_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too many values"):
        write_part(Storage.at(tmp_path), FAMILY, "expert", 0, draw_episodes(FAMILY, [3, 4]), 0)
    assert files_below(tmp_path) == set()


def test_columns_are_native_tensors_of_float32(tmp_path: Path) -> None:
    episodes = draw_episodes(FAMILY, [7, 7], [200, 31])
    name, _ = write_part(Storage.at(tmp_path), FAMILY, "expert", 0, episodes, first_episode=5)
    table = pq.ParquetFile(tmp_path / name).read()
    shapes = {"observations": [200, 20], "actions": [200, 6], "rewards": [200]}
    for column, shape in shapes.items():
        assert table.schema.field(column).type == pa.fixed_shape_tensor(pa.float32(), shape), column
    plain = {"episode": pa.int64(), "seed": pa.int64(), "length": pa.int64(), "success": pa.bool_()}
    assert {column: table.schema.field(column).type for column in plain} == plain
    assert table.column_names == [*plain, *shapes]
    assert table["episode"].to_pylist() == [5, 6]
    assert pq.ParquetFile(tmp_path / name).metadata.row_group(0).column(4).compression == "ZSTD"


def test_files_hold_a_bounded_number_of_steps_in_every_family() -> None:
    for family in FAMILIES.values():
        count = episodes_per_part(family)
        assert count >= 1
        assert count * family.horizon <= MAX_STEPS < (count + 1) * family.horizon


def change(name: str, place: tuple[int, ...], value: float) -> Callable[[Episodes], Episodes]:
    """Put one number into a field."""

    def changed(episodes: Episodes) -> Episodes:
        values = getattr(episodes, name).copy()
        values[place] = value
        return dataclasses.replace(episodes, **{name: values})

    return changed


def cut_axis(name: str, axis: int) -> Callable[[Episodes], Episodes]:
    """Drop the last entry of one axis of a field."""
    return lambda episodes: dataclasses.replace(episodes, **{name: np.delete(getattr(episodes, name), -1, axis=axis)})


UNFIT: dict[str, tuple[Callable[[Episodes], Episodes], str]] = {
    "NaN": (change("observations", (1, 5, 19), np.nan), "observations of episode 1 are not finite at step 5"),
    "inf": (change("rewards", (0, 199), np.inf), "rewards of episode 0 are not finite at step 199"),
    "-inf": (change("actions", (1, 0, 0), -np.inf), "actions of episode 1 are not finite at step 0"),
    "NaN beyond the length": (change("rewards", (1, 150), np.nan), "rewards of episode 1 are not finite at step 150"),
    "length 0": (change("lengths", (1,), 0), "episode 1 has length 0, not 1 to 200"),
    "length -1": (change("lengths", (0,), -1), "episode 0 has length -1, not 1 to 200"),
    "length above the horizon": (change("lengths", (1,), 201), "episode 1 has length 201, not 1 to 200"),
    "observation beyond the length": (
        change("observations", (1, 150, 3), 1e-30),
        "observations of episode 1 are not zero beyond its length, at step 150",
    ),
    "action beyond the length": (
        change("actions", (1, 199, 5), -1.0),
        "actions of episode 1 are not zero beyond its length, at step 199",
    ),
    "reward beyond the length": (
        change("lengths", (1,), 149),
        "observations of episode 1 are not zero beyond its length, at step 149",
    ),
}
MISSHAPEN: dict[str, tuple[Callable[[Episodes], Episodes], str]] = {
    "narrow observations": (cut_axis("observations", 2), "observations"),
    "narrow actions": (cut_axis("actions", 2), "actions"),
    "short rewards": (cut_axis("rewards", 1), "rewards"),
}


def fitting_episodes() -> Episodes:
    return draw_episodes(FAMILY, [7, 7], [200, 150])


@pytest.mark.parametrize("fault", [*UNFIT, *MISSHAPEN])
def test_unfit_episodes_are_refused_before_anything_is_written(tmp_path: Path, fault: str) -> None:
    harm, message = (UNFIT | MISSHAPEN)[fault]
    episodes = draw_episodes(FAMILY, [7, 7], [200, 150])
    with pytest.raises(UserError, match=message) as refusal:
        write_part(Storage.at(tmp_path), FAMILY, "expert", 0, harm(episodes), 0)
    assert f"{tmp_path}/{PART}" in str(refusal.value)
    assert list(tmp_path.iterdir()) == []
    write_part(Storage.at(tmp_path), FAMILY, "expert", 0, episodes, 0)  # the harm alone was refused


# Datasets


def test_writing_leaves_nothing_but_the_dataset(folder: Path) -> None:
    assert files_below(folder) == {"manifest.json", *(part_path(task, q, 0) for task in TASKS for q in QUALITIES)}


def test_dataset_reads_the_episodes_of_the_asked_tasks(tmp_path: Path) -> None:
    drawn = write_dataset(tmp_path, FAMILY, TASKS, episodes=3)
    dataset = open_dataset(tmp_path)
    assert dataset.family is FAMILY
    assert dataset.location == str(tmp_path)
    assert_equal(dataset.read([26, 0]), Episodes.concatenate([drawn[0, "expert"], drawn[26, "expert"]]))
    assert_equal(dataset.read([7], "random"), drawn[7, "random"])
    for part, task in zip(dataset.parts([26, 0, 7]), TASKS, strict=True):
        assert_equal(part, drawn[task, "expert"])
    assert [name for name, _ in dataset.files([26, 7])] == [PART, part_path(26, "expert", 0)]


def test_manifest_holds_goals_references_and_the_best_returns(tmp_path: Path) -> None:
    drawn = write_dataset(tmp_path, FAMILY, TASKS, seed=5)
    manifest = open_dataset(tmp_path).manifest
    assert (manifest.family, manifest.seed, manifest.commands) == ("cheetah-vel", 5, ("a test",))
    assert list(manifest.tasks) == list(TASKS)
    for task, record in manifest.tasks.items():
        reference = reference_returns(FAMILY)[task]
        assert record.goal == FAMILY.goal(task)
        assert (record.random_return, record.expert_return) == (reference.random_return, reference.expert_return)
        assert manifest.best_return(task) == max(drawn[task, q].returns.max() for q in QUALITIES)


def test_missing_tasks_are_named(folder: Path) -> None:
    dataset = open_dataset(folder)
    for reading in (dataset.files, dataset.read, lambda tasks: list(dataset.parts(tasks))):
        with pytest.raises(UserError, match=r"no expert episodes of task\(s\) \[5, 39\]; collect them") as refusal:
            reading([0, 39, 5])
        assert str(folder) in str(refusal.value)
    with pytest.raises(UserError, match=r"no medium episodes of task\(s\) \[7\]; collect them"):
        dataset.read([7], "medium")


def test_digest_identifies_the_content(tmp_path: Path) -> None:
    def digest(name: str, seed: int) -> str:
        write_dataset(tmp_path / name, FAMILY, TASKS, seed=seed)
        return open_dataset(tmp_path / name).manifest.digest

    assert digest("a", seed=0) == digest("b", seed=0)
    assert digest("a", seed=0) != digest("c", seed=1)


def test_digest_does_not_depend_on_the_command(tmp_path: Path) -> None:
    digests = set()
    for command in ("one", "another"):
        writer = DatasetWriter(tmp_path / command, FAMILY, command, seed=0)
        writer.add("expert", draw_episodes(FAMILY, [7, 7]))
        manifest = writer.commit().manifest
        assert manifest.commands == (command,)
        digests.add(manifest.digest)
    assert len(digests) == 1


def test_digest_changes_with_one_reward(folder: Path) -> None:
    before = open_dataset(folder)
    episodes = before.read([7])
    episodes.rewards[1, 100] += 1e-3
    record = plant(folder, PART, encode(columns_of(episodes)))
    after = open_dataset(folder)
    assert after.manifest.digest != before.manifest.digest
    assert after.manifest.files == before.manifest.files | {PART: record}
    assert_equal(after.read([7]), episodes)


# Refusals


def edit_document(folder: Path, edit: Callable[[dict], object]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def edit_manifest(folder: Path, **changes: object) -> None:
    """Write a changed manifest whose digest is right."""
    storage = Storage.at(folder)
    dataclasses.replace(Manifest.read(storage), **changes).write(storage)


def edit_record(folder: Path, **changes: object) -> None:
    """Change what the manifest says of one file, with the right digest."""
    files = Manifest.read(Storage.at(folder)).files
    edit_manifest(folder, files=files | {PART: dataclasses.replace(files[PART], **changes)})


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "no manifest.json"),
    "manifest is a folder": (
        lambda f: ((f / "manifest.json").unlink(), (f / "manifest.json").mkdir()),
        "no manifest.json",
    ),
    "empty manifest": (lambda f: (f / "manifest.json").write_text(""), "not a valid dataset manifest"),
    "broken JSON": (lambda f: (f / "manifest.json").write_text('{"family": '), "not a valid dataset manifest"),
    "no UTF-8": (lambda f: (f / "manifest.json").write_bytes(b'{"family": "\xff"}'), "not a valid dataset manifest"),
    "JSON of another kind": (lambda f: (f / "manifest.json").write_text("[1, 2]"), "not a valid dataset manifest"),
    "missing key": (lambda f: edit_document(f, lambda d: d.pop("horizon")), "horizon"),
    "unknown key": (lambda f: edit_document(f, lambda d: d.update(colour="red")), "colour"),
    "other schema": (lambda f: edit_document(f, lambda d: d.update(schema_version=99)), "schema version 99"),
    "earlier schema": (lambda f: edit_document(f, lambda d: d.update(schema_version=1)), "schema version 1,"),
    "edited checksum": (lambda f: edit_document(f, lambda d: d["files"][PART].update(sha256="0" * 64)), "was edited"),
    "file dropped from the list": (lambda f: edit_document(f, lambda d: d["files"].pop(PART)), "was edited"),
    "edited reference return": (
        lambda f: edit_document(f, lambda d: d["tasks"]["7"].update(expert_return=0.0)),
        "was edited",
    ),
    "changed byte": (lambda f: flip_byte(f / PART), f"{PART} has another digest"),
    "truncated file": (lambda f: (f / PART).write_bytes((f / PART).read_bytes()[:-10]), f"{PART} has another digest"),
    "empty file": (lambda f: (f / PART).write_bytes(b""), f"{PART} has another digest"),
    "missing file": (lambda f: (f / PART).unlink(), f"{PART} is missing"),
    "file is a folder": (lambda f: ((f / PART).unlink(), (f / PART).mkdir()), f"{PART} is missing"),
    "other dimensions": (lambda f: edit_manifest(f, observation_dim=27), r"\(27, 6, 200\), cheetah-vel has \(20,"),
    "other horizon": (lambda f: edit_manifest(f, horizon=100), r"\(20, 6, 100\)"),
    "other physics": (lambda f: edit_manifest(f, versions={"mujoco": "9.9.9"}), r"mujoco 9\.9\.9, installed is"),
    "unknown physics": (lambda f: edit_manifest(f, versions={}), "mujoco"),
    "unknown family": (lambda f: edit_manifest(f, family="cheetah-fly"), "unknown task family 'cheetah-fly'"),
    "more episodes in the manifest": (
        lambda f: edit_record(f, episodes=3),
        f"{PART} holds 2 episodes of 400 steps, the manifest says 3 of 400",
    ),
    "fewer steps in the manifest": (
        lambda f: edit_record(f, steps=399),
        f"{PART} holds 2 episodes of 400 steps, the manifest says 2 of 399",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_dataset_is_refused_by_name_with_a_remedy(folder: Path, damage: str) -> None:
    open_dataset(folder)  # the undamaged one opens
    harm, message = DAMAGES[damage]
    harm(folder)
    with pytest.raises(UserError, match=message) as refusal:
        open_dataset(folder)
    assert str(folder) in str(refusal.value), "the message must name the dataset"
    assert re.search(REMEDIES, str(refusal.value)), "the message must say what to do"


STRANGE_NAMES = [
    "../foreign.parquet",
    "{outside}",
    "file://{outside}",
    "s3://bucket/foreign.parquet",
    "task=7/../../foreign.parquet",
    "task=7/quality=expert/../../../foreign.parquet",
    "./" + PART,
    PART.replace("/", "//", 1),
    PART + "\n",
    "task=7\\quality=expert\\part-00000.parquet",
    "manifest.json",
    "",
    part_path(26, "expert", 0),
    part_path(7, "random", 0),
]
"""Names in a manifest that are no file of task 7 and quality expert inside the dataset."""


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_manifest_names_files_of_its_own_folder_only(folder: Path, name: str) -> None:
    outside = folder.parent / "foreign.parquet"
    outside.write_bytes((folder / PART).read_bytes())  # what it names is there, unchanged
    name, manifest = name.format(outside=outside), Manifest.read(Storage.at(folder))
    others = {other: record for other, record in manifest.files.items() if other not in (PART, name)}
    edit_manifest(folder, files=others | {name: manifest.files[PART]})
    with pytest.raises(UserError, match=re.escape(f"manifest.json names {name!r} as a file of task 7")) as refusal:
        open_dataset(folder)
    assert "\n" not in str(refusal.value)


Columns = dict[str, pa.Array]


def with_column(name: str, make: Callable[[pa.Array], pa.Array]) -> Callable[[Columns], Columns]:
    return lambda columns: columns | {name: make(columns[name])}


def without(name: str) -> Callable[[Columns], Columns]:
    return lambda columns: {other: column for other, column in columns.items() if other != name}


def as_lists(column: pa.Array) -> pa.Array:
    return pa.array([row.ravel().tolist() for row in column.to_numpy_ndarray()], pa.list_(pa.float32()))


def of_kind(kind: type) -> Callable[[pa.Array], pa.Array]:
    return lambda column: pa.FixedShapeTensorArray.from_numpy_ndarray(column.to_numpy_ndarray().astype(kind))


def transposed(column: pa.Array) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(column.to_numpy_ndarray().swapaxes(1, 2)))


def first_row_null(column: pa.Array) -> pa.Array:
    return pa.concat_arrays([pa.nulls(1, column.type), column.slice(1)])


def first_number_null(column: pa.Array) -> pa.Array:
    size = column.storage.type.list_size
    numbers = pa.concat_arrays([pa.nulls(1, pa.float32()), column.storage.flatten().slice(1)])
    return pa.ExtensionArray.from_storage(column.type, pa.FixedSizeListArray.from_arrays(numbers, size))


WRONG_COLUMNS: dict[str, tuple[Callable[[Columns], Columns], str]] = {
    "no rewards": (without("rewards"), "rewards is missing"),
    "no success": (without("success"), "success is missing"),
    "one column more": (lambda c: c | {"colour": c["seed"]}, "colour is not expected"),
    "other order": (lambda c: dict(reversed(c.items())), "their order is not expected"),
    "float64": (with_column("rewards", of_kind(np.float64)), "rewards is .*double"),
    "lists": (with_column("actions", as_lists), "actions is list"),
    "transposed": (with_column("observations", transposed), r"observations is .*20,\s?200"),
    "lengths of int32": (with_column("length", lambda c: c.cast(pa.int32())), "length is int32, not int64"),
    "null length": (with_column("length", first_row_null), "length"),
    "null success": (with_column("success", first_row_null), "success"),
    "null seed": (with_column("seed", first_row_null), "seed"),
    "null rewards": (with_column("rewards", first_row_null), "rewards|Parquet"),
    "null observations": (with_column("observations", first_row_null), "observations|Parquet"),
    "null number": (with_column("rewards", first_number_null), "rewards"),
    "no row": (lambda c: {name: column.slice(0, 0) for name, column in c.items()}, "holds 0 episodes of 0 steps"),
    "one row less": (lambda c: {name: column.slice(1) for name, column in c.items()}, "holds 1 episodes of 150 steps"),
    "rows twice": (
        lambda c: {name: pa.concat_arrays([column, column]) for name, column in c.items()},
        "holds 4 episodes of 700 steps",
    ),
}


def refuse_planted(folder: Path, content: bytes, message: str) -> None:
    """Expect a file to be refused for its content, as its checksum is right."""
    plant(folder, PART, encode(columns_of(fitting_episodes())))
    edit_record(folder, steps=350)
    open_dataset(folder)  # a fitting file made in the same way opens
    plant(folder, PART, content)
    with pytest.raises(UserError, match=message) as refusal:
        open_dataset(folder)
    assert f"{folder}/{PART}" in str(refusal.value)
    assert "collect the dataset again" in str(refusal.value)


@pytest.mark.parametrize("fault", UNFIT)
def test_unfit_numbers_are_refused_though_the_checksum_is_right(folder: Path, fault: str) -> None:
    harm, message = UNFIT[fault]
    refuse_planted(folder, encode(columns_of(harm(fitting_episodes()))), message)


@pytest.mark.parametrize("fault", MISSHAPEN)
def test_unfit_dimensions_are_refused_though_the_checksum_is_right(folder: Path, fault: str) -> None:
    harm, message = MISSHAPEN[fault]
    refuse_planted(folder, encode(columns_of(harm(fitting_episodes()))), f"other columns than .*: {message} is .*not")


@pytest.mark.parametrize("fault", WRONG_COLUMNS)
def test_wrong_columns_are_refused_though_the_checksum_is_right(folder: Path, fault: str) -> None:
    harm, message = WRONG_COLUMNS[fault]
    refuse_planted(folder, encode(harm(columns_of(fitting_episodes()))), message)


@pytest.mark.parametrize("content", ["empty", "text", "no footer", "no header", "damaged page"])
def test_unreadable_file_is_refused_though_the_checksum_is_right(folder: Path, content: str) -> None:
    whole = encode(columns_of(fitting_episodes()))
    page = len(whole) // 4  # within the observations
    damaged = {
        "empty": b"",
        "text": b"episode,seed,length\n1,2,3\n",
        "no footer": whole[:-100],
        "no header": whole[100:],
        "damaged page": whole[:page] + bytes(200) + whole[page + 200 :],
    }
    refuse_planted(folder, damaged[content], "Parquet")


def test_unfit_file_late_in_a_large_dataset_is_found(folder: Path) -> None:
    """Files are checked side by side; whichever is at fault, nothing is returned."""
    name = part_path(26, "random", 0)
    episodes = change("rewards", (1, 3), np.nan)(open_dataset(folder).read([26], "random"))
    plant(folder, name, encode(columns_of(episodes)))
    with pytest.raises(UserError, match=f"{name}: rewards of episode 1 are not finite at step 3"):
        open_dataset(folder)


def test_episodes_of_a_later_batch_are_named_by_their_number(folder: Path) -> None:
    """Rows are decoded some at a time; the message counts from the first of the file."""
    episodes = change("actions", (150, 7, 2), np.nan)(draw_episodes(FAMILY, [7] * 160))
    plant(folder, PART, encode(columns_of(episodes)))
    with pytest.raises(UserError, match="actions of episode 150 are not finite at step 7"):
        open_dataset(folder)


def test_returns_to_go_are_sums_to_the_end_of_the_episode() -> None:
    episodes = draw_episodes(FAMILY, [1, 2, 3], lengths=[200, 3, 77])
    expected = [[sum(float(r) for r in row[t:]) for t in range(200)] for row in episodes.rewards]
    np.testing.assert_allclose(episodes.returns_to_go(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(episodes.returns, [row[0] for row in expected], rtol=1e-12)
    assert (episodes.returns_to_go()[1, 3:] == 0).all()
