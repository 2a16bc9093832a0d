"""Ray Data for episodes that do not fit in memory: its tasks cut the history windows of coming updates.

A worker takes them in order, while it trains. They are the windows that resident tensors give for the same plans, since
the same code cuts them (`data/plans.py`, `data/windows.py`). A task holds the files of one round for as long as it cuts
windows from them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import ray.data
import torch
from numpy.typing import NDArray

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.parts import read_part
from promptdiffuser.data.plans import Planner, WindowPlan
from promptdiffuser.data.storage import Storage
from promptdiffuser.data.windows import ResidentEpisodes, Segments

Rows = dict[str, NDArray[Any]]
CPU = torch.device("cpu")
# One cuts while the other's windows are taken; free CPUs bound the tasks of other trainings.
ELASTIC_TASKS: dict[str, Any] = {"num_cpus": 0, "compute": ray.data.TaskPoolStrategy(size=2)}


@dataclass(frozen=True)
class WindowCutter:
    """Cuts the windows of one worker's share; runs in Ray Data tasks."""

    storage: Storage
    files: tuple[tuple[str, int], ...]
    """(name, task) of every file, in the order of the index."""
    planner: Planner
    normaliser: Normaliser
    share: range
    """Episodes whose windows are this worker's."""

    def __post_init__(self) -> None:
        """Check that the plans know of the files."""
        if len(self.files) != len(self.planner.rounds.sizes):
            raise ValueError("the planner's rounds must name the episodes of every file that windows are cut from")

    def __call__(self, stretches: Rows) -> Iterator[Rows]:
        """Yield the windows of every update of some stretches of updates, each of which lies in one round."""
        for first, last in zip(stretches["first"], stretches["last"], strict=True):
            if (episodes := self._episodes(int(first))) is None:
                continue
            for step in range(first, last):
                rows, windows = episodes.windows(step, self.planner.at(step))
                if len(rows):
                    arrays = {field.name: getattr(windows, field.name).numpy() for field in fields(Segments)}
                    yield {"step": np.full(len(rows), step)} | arrays

    def _episodes(self, step: int) -> ResidentEpisodes | None:
        """Hold the share's episodes of an update's round, if it has any."""
        rounds, index = self.planner.rounds, self.planner.index
        parts, numbers = [], []
        for file, of_file in rounds.files_with_episodes(rounds.number(step), self.planner.address):
            ours = (of_file >= self.share.start) & (of_file < self.share.stop)
            if ours.any():
                parts.append(read_part(self.storage, *self.files[file]).select(ours))
                numbers.append(of_file[ours])
        if not parts:
            return None
        return ResidentEpisodes.build(
            Episodes.concatenate(parts), np.concatenate(numbers), self.normaliser, CPU, num_episodes=len(index)
        )


class StreamedWindows:
    """A worker's history windows, cut by Ray Data tasks while it trains; a `WindowSource`."""

    def __init__(
        self, cutter: WindowCutter, num_updates: int, action_dim: int, device: torch.device, *, elastic: bool = False
    ) -> None:
        """Begin with the update that is first asked for; a resumed training asks for a later one.

        An elastic training may take every CPU, where a task that asked for one would wait for ever.
        """
        self._cutter, self._num_updates, self._num_taken = cutter, num_updates, 0
        self._task_options: dict[str, Any] = ELASTIC_TASKS if elastic else {}
        self._blocks: Iterator[Rows] | None = None
        self._rows: Rows = {}
        self.device, self.action_dim = device, action_dim

    def held(self, plan: WindowPlan) -> NDArray[np.intp]:
        """Return the rows of a plan whose episode is in this worker's share."""
        share = self._cutter.share
        return np.flatnonzero((plan.episodes >= share.start) & (plan.episodes < share.stop))

    def windows(self, step: int, plan: WindowPlan) -> tuple[NDArray[np.intp], Segments]:
        """Return the rows of the plan that are this worker's, and their windows; updates are asked for in order."""
        rows = self.held(plan)
        if self._blocks is None:
            self._blocks, self._rows = self._open(step), self._no_rows(plan.window_steps)
        while len(self._rows["step"]) - self._num_taken < len(rows):
            rest, more = {k: v[self._num_taken :] for k, v in self._rows.items()}, next(self._blocks)
            self._rows, self._num_taken = {k: np.concatenate([rest[k], more[k]]) for k in more}, 0
        taken = {k: v[self._num_taken : self._num_taken + len(rows)] for k, v in self._rows.items()}
        self._num_taken += len(rows)
        if (taken.pop("step") != step).any():
            raise RuntimeError(f"the stream of windows is not at update {step}, which was asked for")
        return rows, Segments(**{name: torch.tensor(values, device=self.device) for name, values in taken.items()})

    def _no_rows(self, num_steps: int) -> Rows:
        """Return what a worker has before the first block arrives, in the shape of what will come."""
        state_dim, shape = len(self._cutter.normaliser.state_mean), (0, num_steps)
        return {
            "step": np.zeros(0, np.int64),
            "returns_to_go": np.zeros(shape, np.float32),
            "states": np.zeros((*shape, state_dim), np.float32),
            "actions": np.zeros((*shape, self.action_dim), np.float32),
            "rewards": np.zeros(shape, np.float32),
            "timesteps": np.zeros(shape, np.int64),
            "valid": np.zeros(shape, bool),
        }

    def _open(self, first: int) -> Iterator[Rows]:
        size = self._cutter.planner.rounds.config.updates
        cuts = [first, *range(first - first % size + size, self._num_updates, size), self._num_updates]
        stretches = ray.data.from_items(
            [{"first": a, "last": b} for a, b in pairwise(cuts)], override_num_blocks=len(cuts) - 1
        )
        stretches.context.execution_options.preserve_order = True
        stretches.context.enable_progress_bars = False
        windows = stretches.map_batches(self._cutter, batch_size=1, batch_format="numpy", **self._task_options)
        whole_blocks: Any = None
        return iter(windows.iter_batches(batch_size=whole_blocks, batch_format="numpy"))
