"""Which of several scored things is best: snapshots, trials."""

import math
from collections.abc import Mapping
from typing import Literal, TypeVar

Direction = Literal["max", "min"]
Key = TypeVar("Key")


def select_best(scores: Mapping[Key, float | None], direction: Direction) -> Key | None:
    """Return the key of the best score, the first of equals; None if no score is a finite number."""
    finite = {key: score for key, score in scores.items() if score is not None and math.isfinite(score)}
    sign = 1 if direction == "max" else -1
    return max(finite, key=lambda key: sign * finite[key], default=None)
