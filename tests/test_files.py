"""Links that are replaced at once."""

import errno
import os
from pathlib import Path

import pytest

from promptdiffuser.files import point


def test_a_link_is_relative_and_replaces_files_and_links(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(name)
    (tmp_path / "summary.json").write_text("of an earlier version")
    point(tmp_path / "latest", tmp_path / "first")
    point(tmp_path / "summary.json", tmp_path / "latest" / "summary.json")
    assert (tmp_path / "summary.json").read_text() == "first"
    point(tmp_path / "latest", tmp_path / "second")
    assert (tmp_path / "summary.json").read_text() == "second"
    assert (tmp_path / "latest").readlink() == Path("second")
    assert not list(tmp_path.glob(".*"))


def test_where_no_link_can_be_made_files_are_copied_and_a_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)  # as exFAT does
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "summary.json").write_text("first")
    point(tmp_path / "latest", tmp_path / "first")
    point(tmp_path / "summary.json", tmp_path / "first" / "summary.json")
    assert (tmp_path / "latest").read_text() == "first\n"
    assert (tmp_path / "summary.json").read_text() == "first"
    assert not (tmp_path / "summary.json").is_symlink()
