"""Per-episode results on storage."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from promptdiffuser.rollout.results import BlockResults
from tests.killed import end_without_a_word, files_up_to, in_a_process
from tests.training.damage import flip_a_byte, truncate


def frame(first: int) -> pd.DataFrame:
    return pd.DataFrame({"method": ["m"] * 3, "episode": range(first, first + 3), "return": [1.5, float("nan"), first]})


def test_blocks_are_joined_in_the_order_asked_for_whatever_order_they_came_in(tmp_path: Path) -> None:
    results = BlockResults(tmp_path / "blocks")
    assert not results.has("b")
    for name, first in (("b", 3), ("c", 6), ("a", 0)):
        results.write(name, frame(first))
    assert results.has("b")
    results.join(["a", "b", "c"], tmp_path / "episodes.parquet")
    joined = pd.read_parquet(tmp_path / "episodes.parquet")
    pd.testing.assert_frame_equal(joined, pd.concat([frame(0), frame(3), frame(6)], ignore_index=True))
    assert pq.ParquetFile(tmp_path / "episodes.parquet").num_row_groups == 3


def test_a_block_that_is_half_written_is_not_there(tmp_path: Path) -> None:
    results = BlockResults(tmp_path)
    results.write("a", frame(0))

    class HalfWritten(pd.DataFrame):
        def to_parquet(self, path: Path, **_: object) -> None:
            path.write_bytes((tmp_path / "a.parquet").read_bytes()[:50])
            end_without_a_word()

    in_a_process(lambda: results.write("b", HalfWritten()))
    assert len(list(tmp_path.iterdir())) == 3
    assert not results.has("b")
    results.write("b", frame(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "a.sha256", "b.parquet", "b.sha256"]


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, lambda path: path.write_bytes(b"")])
def test_a_damaged_block_is_not_there(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """It would end the evaluation that joins it, or change a return unnoticed."""
    results = BlockResults(tmp_path)
    results.write("a", frame(0))
    damage(results.path("a"))
    assert not results.has("a")
    results.write("a", frame(0))
    assert results.has("a")


def test_a_full_disk_leaves_no_half_of_a_block(tmp_path: Path) -> None:
    results = BlockResults(tmp_path / "blocks")
    results.write("a", frame(0))
    with files_up_to(100):
        with pytest.raises(OSError, match="large"):
            results.write("b", frame(1))
        with pytest.raises(OSError, match="large"):
            results.join(["a"], tmp_path / "episodes.parquet")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.parquet", "a.sha256", "blocks"]
