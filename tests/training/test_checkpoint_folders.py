"""Checkpoint folders: what is written is read back, and whatever is broken is named."""

import json
import logging
import re
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from promptdiffuser.errors import UserError
from promptdiffuser.training.checkpoint import (
    MANIFEST,
    keep_last_checkpoints,
    load_checkpoint,
    newest_valid_checkpoint,
    save_checkpoint,
    write_json,
)
from tests.killed import end_without_a_word, files_up_to, in_a_process
from tests.training.damage import flip_a_byte, truncate


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


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_there_is_no_moment_at_which_neither_the_old_nor_the_new_checkpoint_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """The writer is killed before its first, second or third rename."""
    save(tmp_path / "model", 1)
    left, rename = [renames], Path.rename

    def cut_short(source: Path, target: Path) -> Path:
        if left[0] == 0:
            end_without_a_word()
        left[0] -= 1
        return rename(source, target)

    def interrupted() -> None:
        monkeypatch.setattr(Path, "rename", cut_short)
        save(tmp_path / "model", 2)

    in_a_process(interrupted)
    assert load_checkpoint(tmp_path / "model").documents["progress"]["step"] in (1, 2)
    save(tmp_path / "model", 3)
    assert load_checkpoint(tmp_path / "model").documents["progress"]["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "what the dead writer left must go"


def test_a_dead_writers_leftovers_go_and_a_living_ones_stay(tmp_path: Path) -> None:
    """Two processes save the same checkpoint; one of them is killed."""
    tensors = {"engine": {"vector": torch.zeros(3)}}

    def killed_in_the_middle() -> None:
        save_checkpoint(tmp_path / "step-1", Interrupting(tensors, end_without_a_word), {})

    assert in_a_process(killed_in_the_middle) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1

    def saves_meanwhile() -> None:
        assert in_a_process(lambda: save(tmp_path / "step-1", 2) and keep_last_checkpoints(tmp_path, 1)) == 0
        assert load_checkpoint(tmp_path / "step-1").documents["progress"]["step"] == 2

    save_checkpoint(tmp_path / "step-1", Interrupting(tensors, saves_meanwhile), {"progress": {"step": 1}})
    assert load_checkpoint(tmp_path / "step-1").documents["progress"]["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


class Interrupting(dict[str, dict[str, torch.Tensor]]):
    """Tensors that let something happen while they are written."""

    def __init__(self, tensors: dict[str, dict[str, torch.Tensor]], happening: Callable[[], None]) -> None:
        super().__init__(tensors)
        self.happening = happening

    def items(self) -> Any:
        yield from super().items()
        self.happening()


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path / "model", 1)
    write_json(tmp_path / "note.json", {"step": 1})
    with files_up_to(100):
        with pytest.raises((OSError, SafetensorError)):
            save(tmp_path / "model", 2)
        with pytest.raises(OSError, match="large"):
            write_json(tmp_path / "note.json", {"step": list(range(1000))})
    assert load_checkpoint(tmp_path / "model").documents["progress"]["step"] == 1
    assert json.loads((tmp_path / "note.json").read_text()) == {"step": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "note.json"]


@pytest.mark.parametrize("foreign", ["../secret.json", "below/secret.json", "..", "", "{absolute}"])
def test_a_manifest_names_files_of_its_own_folder(tmp_path: Path, foreign: str) -> None:
    """A model from elsewhere must not make anything read files beside it, checksum or not."""
    secret = tmp_path / "secret.json"
    secret.write_text('{"token": 1}')
    folder = save(tmp_path / "model")
    name = foreign.format(absolute=secret)
    manifest = json.loads((folder / MANIFEST).read_text()) | {name: sha256(secret.read_bytes()).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"model/{MANIFEST} names {re.escape(repr(name))}.*own folder"):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", ["{}", "[]", '"text"', '{"engine.safetensors": 3}', "[" * 100_000, "\xff"])
def test_a_manifest_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    folder = save(tmp_path / "model")
    (folder / MANIFEST).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=rf"model/{MANIFEST} is broken") as refusal:
        load_checkpoint(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["engine.safetensors", "progress.json"])
def test_content_that_is_no_such_file_is_named_though_its_checksum_is_right(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path / "model")
    (folder / name).write_bytes(b"{no such file")
    manifest = json.loads((folder / MANIFEST).read_text()) | {name: sha256(b"{no such file").hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"model/{name} is broken"):
        load_checkpoint(folder)


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    for number in (9, 10, 100):
        save(tmp_path / f"step-{number:08d}", number)
    save(tmp_path / "model")
    in_a_process(lambda: save_checkpoint(tmp_path / "step-00000011", Interrupting({}, end_without_a_word), {}) and None)
    keep_last_checkpoints(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "step-00000010", "step-00000100"]


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    folder = save(tmp_path / "step-1")
    listed = json.loads((folder / MANIFEST).read_text())
    assert listed.keys() == {path.name for path in folder.iterdir()} - {MANIFEST}
