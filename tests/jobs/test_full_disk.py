"""Jobs whose outputs lie on a full disk: real Ray, real MLflow, a real file system of one megabyte."""

from pathlib import Path

import pytest

from tests import tiny
from tests.full_disk import small_disk

pytestmark = pytest.mark.ray


def test_a_full_disk_met_by_a_rollout_actor_is_one_line(tmp_path: Path) -> None:
    ends_in_one_line(tmp_path, [])


def test_a_full_disk_met_by_a_training_worker_is_one_line(tiny_run: Path, tmp_path: Path) -> None:
    (dataset,) = tiny_run.glob("quickstart/collect-*/dataset")
    ends_in_one_line(tmp_path, ["--dataset", str(dataset), "--backbone.width", "256"])


def ends_in_one_line(folder: Path, options: list[str]) -> None:
    """Run the tiny pipeline with its outputs on a disk of a megabyte, and look at its end."""
    with small_disk(folder / "disk", kilobytes=1024) as disk:
        process = tiny.start_pipeline(folder, tiny.WITHOUT_DIFFUSER, disk, options)
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 2, output
        errors = [line for line in output.splitlines() if "error" in line]
        assert len(errors) == 1, output
        assert output.endswith(errors[0] + "\n"), output
        assert errors[0].startswith(f"error: {disk}")
        assert "No space left on device" in errors[0]
        assert "Traceback" not in output
        assert [path for path in disk.rglob("*") if ".writing" in path.name] == []
