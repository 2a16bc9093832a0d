"""Checkpoint folders: what is written is read back, and whatever is broken is named."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from promptdiffuser.errors import UserError
from promptdiffuser.learning.checkpoint import (
    MANIFEST,
    keep_last_checkpoints,
    load_checkpoint,
    newest_valid_checkpoint,
    save_checkpoint,
)
from tests.learning.damage import flip_a_byte, truncate


def save(folder: Path, number: int = 0) -> Path:
    tensors = {"engine": {"vector": torch.arange(100.0) + number, "flags": torch.tensor([True, False])}}
    return save_checkpoint(folder, tensors, {"progress": {"step": number, "history": [{"loss": 0.5}]}})


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_a_checkpoint_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save(tmp_path / "new" / "step-1", number=3))
    assert checkpoint.documents == {"progress": {"step": 3, "history": [{"loss": 0.5}]}}
    assert torch.equal(checkpoint.tensors["engine"]["vector"], torch.arange(100.0) + 3)
    assert torch.equal(checkpoint.tensors["engine"]["flags"], torch.tensor([True, False]))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["step-1"]


def test_views_are_written_as_the_tensors_they_show(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    save_checkpoint(tmp_path / "c", {"weights": {"column": whole[:, 1], "transposed": whole.T}}, {})
    weights = load_checkpoint(tmp_path / "c").tensors["weights"]
    assert torch.equal(weights["column"], whole[:, 1])
    assert torch.equal(weights["transposed"], whole.T)


def test_saving_again_replaces_the_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "model", number=1)
    save(tmp_path / "model", number=2)
    assert load_checkpoint(tmp_path / "model").documents["progress"]["step"] == 2


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, empty, Path.unlink])
@pytest.mark.parametrize("name", ["engine.safetensors", "progress.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    folder = save(tmp_path / "step-1")
    damage(folder / name)
    with pytest.raises(UserError, match=rf"step-1/{name} is (broken|missing)"):
        load_checkpoint(folder)


@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink])
def test_a_damaged_manifest_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = save(tmp_path / "step-1")
    damage(folder / MANIFEST)
    with pytest.raises(UserError, match=rf"step-1.*{MANIFEST}"):
        load_checkpoint(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="step-9 is not a checkpoint"):
        load_checkpoint(tmp_path / "step-9")


@pytest.mark.parametrize(
    ("name", "damage"), [("engine.safetensors", flip_a_byte), ("progress.json", Path.unlink), (MANIFEST, Path.unlink)]
)
def test_a_broken_newest_checkpoint_is_stepped_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    for number in (8, 9, 10):
        save(tmp_path / f"step-{number:08d}", number)
    damage(tmp_path / "step-00000010" / name)
    with caplog.at_level(logging.WARNING):
        checkpoint = newest_valid_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.documents["progress"]["step"] == 9
    (warning,) = caplog.messages
    assert "step-00000010" in warning
    assert name in warning


def test_without_a_valid_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert newest_valid_checkpoint(tmp_path / "nowhere") is None
    truncate(save(tmp_path / "step-00000001") / "progress.json")
    assert newest_valid_checkpoint(tmp_path) is None


def test_a_leftover_of_an_interrupted_save_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that dies before the rename leaves its temporary folder, however complete, behind."""
    save(tmp_path / "step-00000001", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", power_cut)
        with pytest.raises(OSError, match="power cut"):
            save(tmp_path / "step-00000002", 2)
    assert len(list(tmp_path.iterdir())) == 2, "the interrupted save left nothing to ignore"
    checkpoint = newest_valid_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.documents["progress"]["step"] == 1
    assert not caplog.messages
    save(tmp_path / "step-00000002", 2)
    assert load_checkpoint(tmp_path / "step-00000002").documents["progress"]["step"] == 2


def power_cut(source: Path, target: Path) -> Path:
    raise OSError(f"power cut before {source} became {target}")


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    for number in (9, 10, 100):
        save(tmp_path / f"step-{number:08d}", number)
    save(tmp_path / "model")
    (tmp_path / ".step-00000011.writing-123").mkdir()  # of a process that was killed
    keep_last_checkpoints(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "step-00000010", "step-00000100"]


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    folder = save(tmp_path / "step-1")
    listed = json.loads((folder / MANIFEST).read_text())
    assert listed.keys() == {path.name for path in folder.iterdir()} - {MANIFEST}
