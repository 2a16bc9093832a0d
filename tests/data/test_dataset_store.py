"""The dataset folder: what is written is read back, and what cannot be trusted is refused by name."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.manifest import Manifest
from promptdiffuser.data.store import file_record, open_dataset, part_path, read_part, write_part
from promptdiffuser.errors import UserError
from promptdiffuser.tasks import FAMILIES
from tests.data.synthetic import draw_episodes, write_dataset

FAMILY = FAMILIES["cheetah-vel"]
TASKS = (0, 7, 26)
EXPERT_PART = part_path(7, "expert")


def assert_equal(left: Episodes, right: Episodes) -> None:
    for field in dataclasses.fields(Episodes):
        mine, other = getattr(left, field.name), getattr(right, field.name)
        assert mine.dtype == other.dtype, field.name
        assert np.array_equal(mine, other), field.name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "dataset", FAMILY, TASKS)
    return tmp_path / "dataset"


def edit_document(folder: Path, edit: Callable[[dict], object]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def edit_manifest(folder: Path, **changes: object) -> None:
    """Write a changed manifest whose digest is right."""
    dataclasses.replace(Manifest.read(folder), **changes).write(folder)


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("lengths", [[200], [200, 200, 200], [1, 57, 200]])
def test_part_is_read_back_exactly(tmp_path: Path, lengths: list[int]) -> None:
    episodes = draw_episodes(FAMILY, [7] * len(lengths), lengths)
    path = write_part(tmp_path, "expert", episodes)
    assert path == tmp_path / "task=7/quality=expert/part-0.parquet"
    assert_equal(read_part(path, 7), episodes)


def test_part_of_a_selection_is_read_back_exactly(tmp_path: Path) -> None:
    episodes = draw_episodes(FAMILY, [3] * 6).select(slice(None, None, 2))  # strided arrays
    assert_equal(read_part(write_part(tmp_path, "expert", episodes), 3), episodes)


def test_part_holds_one_task_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too many values"):
        write_part(tmp_path, "expert", draw_episodes(FAMILY, [3, 4]))


def test_columns_are_native_tensors_of_float32(tmp_path: Path) -> None:
    schema = pq.ParquetFile(write_part(tmp_path, "expert", draw_episodes(FAMILY, [7, 7]))).schema_arrow
    shapes = {"observations": [200, 20], "actions": [200, 6], "rewards": [200]}
    for name, shape in shapes.items():
        assert schema.field(name).type == pa.fixed_shape_tensor(pa.float32(), shape), name
    assert {name: schema.field(name).type for name in ("episode", "seed", "length")} == dict.fromkeys(
        ("episode", "seed", "length"), pa.int64()
    )


def test_writing_leaves_nothing_but_the_dataset(folder: Path) -> None:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"manifest.json", *(part_path(task, q) for task in TASKS for q in ("expert", "random"))}


def test_dataset_reads_the_episodes_of_the_asked_tasks(tmp_path: Path) -> None:
    parts = write_dataset(tmp_path, FAMILY, TASKS, episodes=3)
    dataset = open_dataset(tmp_path)
    assert dataset.family is FAMILY
    assert_equal(dataset.read([26, 0]), Episodes.concatenate([parts[0, "expert"], parts[26, "expert"]]))
    assert_equal(dataset.read([7], "random"), parts[7, "random"])
    first_two = [parts[task, "expert"].select(slice(2)) for task in (0, 7)]
    assert_equal(dataset.read([0, 7], limit=2), Episodes.concatenate(first_two))


def test_missing_tasks_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no expert episodes of task\(s\) \[5, 39\]"):
        open_dataset(folder).read([0, 39, 5])
    with pytest.raises(UserError, match=r"no medium episodes of task\(s\) \[7\]"):
        open_dataset(folder).read([7], "medium")


def test_digest_identifies_the_content(tmp_path: Path) -> None:
    def digest(name: str, seed: int) -> str:
        write_dataset(tmp_path / name, FAMILY, TASKS, seed=seed)
        return open_dataset(tmp_path / name).manifest.digest

    assert digest("a", seed=0) == digest("b", seed=0)
    assert digest("a", seed=0) != digest("c", seed=1)


def test_digest_changes_with_one_reward(tmp_path: Path) -> None:
    parts = write_dataset(tmp_path, FAMILY, TASKS)
    before = open_dataset(tmp_path).manifest
    part = parts[7, "expert"]
    part.rewards[1, 100] += 1e-3
    path = write_part(tmp_path, "expert", part)
    records = dict(before.files)
    records[EXPERT_PART] = file_record(path, 7, "expert", part.lengths)
    edit_manifest(tmp_path, files=records)
    assert open_dataset(tmp_path).manifest.digest != before.digest


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "no manifest.json"),
    "broken JSON": (lambda f: (f / "manifest.json").write_text('{"family": '), "not a valid dataset manifest"),
    "JSON of another kind": (lambda f: (f / "manifest.json").write_text("[1, 2]"), "not a valid dataset manifest"),
    "missing key": (lambda f: edit_document(f, lambda d: d.pop("horizon")), "horizon"),
    "unknown key": (lambda f: edit_document(f, lambda d: d.update(colour="red")), "colour"),
    "other schema": (lambda f: edit_document(f, lambda d: d.update(schema_version=99)), "schema version 99"),
    "edited checksum": (
        lambda f: edit_document(f, lambda d: d["files"][EXPERT_PART].update(sha256="0" * 64)),
        "was edited",
    ),
    "file dropped from the list": (lambda f: edit_document(f, lambda d: d["files"].pop(EXPERT_PART)), "was edited"),
    "edited reference return": (
        lambda f: edit_document(f, lambda d: d["tasks"]["7"].update(expert_return=0.0)),
        "was edited",
    ),
    "changed byte": (lambda f: flip_byte(f / EXPERT_PART), f"{EXPERT_PART} has another digest"),
    "truncated file": (
        lambda f: (f / EXPERT_PART).write_bytes((f / EXPERT_PART).read_bytes()[:-10]),
        f"{EXPERT_PART} has another digest",
    ),
    "missing file": (lambda f: (f / EXPERT_PART).unlink(), f"{EXPERT_PART} is missing"),
    "other dimensions": (lambda f: edit_manifest(f, observation_dim=27), r"\(27, 6, 200\), cheetah-vel has \(20,"),
    "other horizon": (lambda f: edit_manifest(f, horizon=100), r"\(20, 6, 100\)"),
    "other physics": (lambda f: edit_manifest(f, versions={"mujoco": "9.9.9"}), r"mujoco 9\.9\.9, installed is"),
    "unknown physics": (lambda f: edit_manifest(f, versions={}), "mujoco"),
    "unknown family": (lambda f: edit_manifest(f, family="cheetah-fly"), "unknown task family 'cheetah-fly'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_dataset_is_refused_by_name(folder: Path, damage: str) -> None:
    open_dataset(folder)  # the undamaged one opens
    harm, message = DAMAGES[damage]
    harm(folder)
    with pytest.raises(UserError, match=message) as refusal:
        open_dataset(folder)
    if damage != "unknown family":
        assert str(folder) in str(refusal.value), "the message must name the dataset"


def test_returns_to_go_are_sums_to_the_end_of_the_episode() -> None:
    episodes = draw_episodes(FAMILY, [1, 2, 3], lengths=[200, 3, 77])
    expected = [[sum(float(r) for r in row[t:]) for t in range(200)] for row in episodes.rewards]
    np.testing.assert_allclose(episodes.returns_to_go(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(episodes.returns, [row[0] for row in expected], rtol=1e-12)
    assert (episodes.returns_to_go()[1, 3:] == 0).all()
