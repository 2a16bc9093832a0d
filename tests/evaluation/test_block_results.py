"""Per-episode results on storage."""

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from promptdiffuser.evaluation.results import BlockResults


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
    (tmp_path / "b.writing").write_bytes((tmp_path / "a.parquet").read_bytes()[:50])
    assert not results.has("b")
    results.write("b", frame(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]
