"""Snapshots of a model during its training, below `snapshots/` of its folder, and the scores they were given."""

import json
import shutil
from pathlib import Path
from typing import Any

from promptdiffuser.learning.checkpoint import replacing, write_json

SCORES = "scores.json"


def read_scores(snapshots: Path) -> dict[str, Any]:
    """Return name of the snapshot -> its score, for those that have one."""
    path = snapshots / SCORES
    scores: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return scores


def write_scores(snapshots: Path, scores: dict[str, Any]) -> None:
    """Keep the scores; they stay when a snapshot goes."""
    write_json(snapshots / SCORES, scores)


def use_snapshot(folder: Path, name: str) -> None:
    """Make a snapshot the model of a finished training."""
    with replacing(folder / "model") as model:
        shutil.copytree(folder / "snapshots" / name, model, dirs_exist_ok=True)
