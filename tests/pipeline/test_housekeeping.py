"""`promptdiffuser list` and `promptdiffuser prune` on the outputs of a real run."""

import shutil
from pathlib import Path

import pytest

from promptdiffuser.cli.main import main
from promptdiffuser.files import locked
from promptdiffuser.pipeline.housekeeping import entries, removable

pytestmark = pytest.mark.ray


@pytest.fixture
def outputs(tiny_run: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny quickstart's outputs, with a stage that was interrupted and one of an older version."""
    folder = tmp_path / "outputs"
    shutil.copytree(tiny_run / "quickstart", folder / "quickstart", symlinks=True)
    interrupted, older = (folder / "quickstart" / name for name in ("pretrain-00000000", "collect-00000000"))
    interrupted.mkdir()
    (interrupted / "inputs.json").write_text("{}")
    older.mkdir()
    (older / "stage.json").write_text('{"fingerprint": "0"}')
    return folder


def states(outputs: Path) -> dict[str, str]:
    experiment = outputs / "quickstart"
    return {str(entry.folder.relative_to(experiment)): entry.state for entry in entries(experiment)}


def test_prune_deletes_what_nothing_was_made_from(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = states(outputs)
    assert before.pop("pretrain-00000000") == "interrupted"
    assert before.pop("collect-00000000") == "of an older version"
    assert set(before.values()) == {"done", "part"}
    main(["prune", str(outputs)])
    assert "can be deleted; --yes deletes it" in capsys.readouterr().out
    assert len(states(outputs)) == len(before) + 2
    main(["prune", str(outputs), "--yes"])
    assert states(outputs) == before
    main(["prune", str(outputs), "--unused", "--yes"])
    assert states(outputs) == before, "the results were made from all of it"
    for path in (outputs / "quickstart").glob("results-*"):
        shutil.rmtree(path)
    main(["prune", str(outputs), "--unused", "--yes"])
    assert states(outputs) == {}


def test_what_is_at_work_is_not_pruned(outputs: Path) -> None:
    with (
        locked(outputs / "quickstart" / ".pretrain-00000000.lock"),
        pytest.raises(SystemExit, match="2"),
    ):
        main(["prune", str(outputs), "--yes"])
    assert len(removable(outputs / "quickstart", unused=False)) == 2


def test_list_has_a_row_for_each_stage(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", str(outputs)])
    shown = capsys.readouterr().out
    assert all(name in shown for name in states(outputs))
    with pytest.raises(SystemExit, match="2"):
        main(["list", str(outputs / "nowhere")])
    assert "nowhere is not there; name the folder of the outputs" in capsys.readouterr().err
