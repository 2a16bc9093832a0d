"""Which episodes of a target task a method may see."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.rng import numpy_generator
from promptdiffuser.tasks.experts import Quality


@dataclass(frozen=True)
class FewShotConfig:
    """The few-shot set of every target task: how many episodes, of which quality, of which returns."""

    episodes: int = 5
    """Episodes of the task (the released prompt files hold 5)."""
    quality: Quality = "expert"
    """Quality of the episodes it is taken from."""
    returns: Literal["any", "low", "middle", "high"] = "any"
    """Any episodes, or those with the lowest, middle or highest returns of that quality (Table 2 of the paper; as in
    knight-fzq/mtdt at 595ccd5, create_dataset.py: sorted by return, the two ends and the centre)."""
    draw: int = 0
    """Which of any episodes: 0 takes the first, every other number is a random draw of its own. How much a result owes
    to the set that happened to be given shows over several draws only."""

    def __post_init__(self) -> None:
        """Refuse an empty set."""
        if self.episodes < 1:
            raise ValueError(f"few_shot.episodes must be at least 1, got {self.episodes}")
        if self.draw < 0:
            raise ValueError(f"few_shot.draw must not be negative, got {self.draw}")
        if self.draw and self.returns != "any":
            raise ValueError(f"few_shot.draw {self.draw} needs few_shot.returns any, {self.returns} leaves no choice")

    def choose(self, episodes: Episodes) -> Episodes:
        """Return the few-shot set out of all episodes of one task and quality, in their original order."""
        return episodes.select(self._rows(episodes))

    def others(self, episodes: Episodes) -> Episodes:
        """Return the episodes that are not in the few-shot set."""
        return episodes.select(np.setdiff1d(np.arange(len(episodes)), self._rows(episodes)))

    def _rows(self, episodes: Episodes) -> NDArray[np.intp]:
        rows: NDArray[np.intp] = np.arange(len(episodes))
        if self.draw:
            rows = numpy_generator(self.draw, "few-shot", int(episodes.tasks[0])).permutation(len(episodes))
        if self.returns != "any":
            rows = np.argsort(episodes.returns, kind="stable")
        start = {
            "any": 0,
            "low": 0,
            "middle": max(0, len(episodes) - self.episodes) // 2,
            "high": max(0, len(episodes) - self.episodes),
        }[self.returns]
        return np.sort(rows[start : start + self.episodes])
