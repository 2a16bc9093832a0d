"""Which snapshot of a training becomes its model; scores that are not finite choose and delete nothing."""

import math
from pathlib import Path

import pytest

from promptdiffuser.errors import UserError
from promptdiffuser.training.selection import select_best
from promptdiffuser.training.snapshots import Criterion, keep_best_snapshot, use_best_snapshot, write_scores

HIGHEST, LOWEST = Criterion("normalised", "max"), Criterion("loss", "min")
NOT_FINITE = [math.nan, math.inf, -math.inf]


def take(folder: Path, criterion: Criterion, scores: list[float]) -> list[Path]:
    """Write a snapshot for each score and return their folders."""
    names = [f"step-{number:08d}" for number in range(len(scores))]
    for name in names:
        (folder / "snapshots" / name).mkdir(parents=True)
        (folder / "snapshots" / name / "weights").write_text(name)
    write_scores(
        folder / "snapshots", {name: {criterion.score: score} for name, score in zip(names, scores, strict=True)}
    )
    return [folder / "snapshots" / name for name in names]


@pytest.mark.parametrize("other", [None, *NOT_FINITE])
def test_the_best_is_finite_and_the_first_of_equals(other: float | None) -> None:
    scores = {"a": other, "b": 1.0, "c": 2.0, "d": other, "e": 2.0, "f": 1.0}
    assert select_best(scores, "max") == "c"
    assert select_best(scores, "min") == "b"
    assert select_best({"a": other}, "max") is None
    assert select_best({}, "min") is None


@pytest.mark.parametrize("other", NOT_FINITE)
@pytest.mark.parametrize(("criterion", "best"), [(HIGHEST, 2), (LOWEST, 1)])
def test_the_best_of_the_finite_scores_stays_and_becomes_the_model(
    tmp_path: Path, criterion: Criterion, best: int, other: float
) -> None:
    snapshots = take(tmp_path, criterion, [other, 0.5, 0.9, other])
    keep_best_snapshot(tmp_path / "snapshots", criterion)
    assert [snapshot for snapshot in snapshots if snapshot.is_dir()] == [snapshots[best]]
    use_best_snapshot(tmp_path, criterion)
    assert (tmp_path / "model" / "weights").read_text() == snapshots[best].name


@pytest.mark.parametrize("other", NOT_FINITE)
def test_without_a_finite_score_all_snapshots_stay_and_none_becomes_the_model(tmp_path: Path, other: float) -> None:
    snapshots = take(tmp_path, HIGHEST, [other, other])
    keep_best_snapshot(tmp_path / "snapshots", HIGHEST)
    assert all(snapshot.is_dir() for snapshot in snapshots)
    with pytest.raises(UserError, match=r"no snapshot in .*snapshots has a finite normalised score"):
        use_best_snapshot(tmp_path, HIGHEST)
    assert not (tmp_path / "model").exists()


def test_a_snapshot_without_a_score_yet_stays(tmp_path: Path) -> None:
    take(tmp_path, HIGHEST, [0.5, 0.9])
    (tmp_path / "snapshots" / "step-00000002").mkdir()
    keep_best_snapshot(tmp_path / "snapshots", HIGHEST)
    assert {path.name for path in (tmp_path / "snapshots").glob("step-*")} == {"step-00000001", "step-00000002"}
