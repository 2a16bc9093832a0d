"""Snapshots of a model during its training, below `snapshots/` of its folder, and the scores they were given."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from promptdiffuser.errors import UserError
from promptdiffuser.files import replacing
from promptdiffuser.training.checkpoint import write_json
from promptdiffuser.training.selection import Direction, select_best

SCORES = "scores.json"
Scores = dict[str, dict[str, float | None]]
"""Name of a snapshot -> its record: scores by name, None for what is not known."""


@dataclass(frozen=True)
class Criterion:
    """The score that snapshots are compared by."""

    score: str
    """Its name in a snapshot's record."""
    direction: Direction
    """Whether the highest or the lowest is best."""

    def best(self, scores: Scores) -> str | None:
        """Return the best snapshot, the earliest of equals; None if none has a finite score."""
        return select_best({name: scores[name][self.score] for name in sorted(scores)}, self.direction)


def read_scores(snapshots: Path) -> Scores:
    """Return the scores of the snapshots that have some."""
    path = snapshots / SCORES
    scores: Scores = json.loads(path.read_text()) if path.is_file() else {}
    return scores


def write_scores(snapshots: Path, scores: Scores) -> None:
    """Keep the scores; they stay when a snapshot goes."""
    write_json(snapshots / SCORES, scores)


def keep_best_snapshot(snapshots: Path, criterion: Criterion) -> None:
    """Delete the scored snapshots except the best; all stay while none has a finite score."""
    scores = read_scores(snapshots)
    if (best := criterion.best(scores)) is None:
        return
    for snapshot in snapshots.glob("step-*"):
        if snapshot.name in scores and snapshot.name != best:
            shutil.rmtree(snapshot)


def use_best_snapshot(folder: Path, criterion: Criterion) -> None:
    """Make the best snapshot the model of a finished training.

    Raises:
        UserError: No snapshot has a finite score.
    """
    snapshots = folder / "snapshots"
    if (best := criterion.best(read_scores(snapshots))) is None:
        raise UserError(
            f"no snapshot in {snapshots} has a finite {criterion.score} score, so none can become the model; train "
            "with other settings, or go on with the last weights (use last)"
        )
    with replacing(folder / "model") as model:
        shutil.copytree(snapshots / best, model, dirs_exist_ok=True)
