"""MACAW's replay buffers: one HDF5 file a task, all steps of a whole training one after the other.

Keys (eric-mitchell/macaw at a421933, src/utils.py `ReplayBuffer.save`): `obs` (M, S), `actions` (M, A), `rewards`
(M, 1) and `terminals` (M, 1), which are read; `next_obs` (M, S), which tells where episodes end and in which direction
they run; and `mc_rewards`, `terminal_obs`, `terminal_discounts`, `discount_factor`, which are not needed.

**Direction.** That code writes every episode backwards, its last step first (`add_trajectory` walks over
`trajectory[::-1]`), other tools forwards. Read in the wrong direction the steps of one episode form no trajectory, so
the direction is found out: by `next_obs`, which must be the `obs` of the row that follows, or else by the first row,
which is a terminal one only in a backward file. A file with neither is taken as forward.

**Ends.** An episode ends at a terminal step, where `next_obs` leads elsewhere, and after the family's horizon at the
latest. A piece that is neither ended by a terminal step nor as long as the horizon is incomplete and left out; one that
`next_obs` carries on beyond the horizon is an error.

**Thirds** (mengsong16/prompt_dt at 3686fea, prompt_dt/utils/gen_macaw.py): the buffer is cut into thirds at episode
ends; random = the first N episodes of the first third, medium = N around the middle of the second, expert = the last N
of the last. The labels are that recipe's: random is the beginning of a training, not uniformly random actions.

Axes: M rows of a buffer, S observation, A action.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.formats.trajectories import Trajectory, assemble
from promptdiffuser.errors import UserError
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.tasks.family import TaskFamily

KEYS = ("obs", "actions", "rewards", "terminals")
EPISODES = 1000
"""Episodes of each quality in the recipe."""
THIRDS: tuple[Quality, ...] = ("random", "medium", "expert")
ROWS_AT_A_TIME = 1 << 16
EPISODES_AT_A_TIME = 100
INSTALL = "MACAW buffers are HDF5 files; install h5py with `pip install 'promptdiffuser[interchange]'`"
_FILE_NAME = re.compile(r"buffers_.+_train_(?P<task>\d+)_sub_task_\d+\.(hdf5|h5)")


@dataclass(frozen=True)
class Span:
    """The rows of one complete episode."""

    number: int
    """Its number in the buffer, incomplete ones counted."""
    first_row: int
    length: int


def file_task(name: str) -> int | None:
    """Return the task id in a file's name as MACAW publishes it, `buffers_ENV_train_ID_sub_task_0.hdf5`."""
    found = _FILE_NAME.fullmatch(name)
    return int(found["task"]) if found else None


def read_macaw_buffer(
    path: Path, family: TaskFamily, task: int, quality: Quality, episodes: int = EPISODES
) -> Iterator[Episodes]:
    """Yield up to `episodes` episodes of one third of a task's buffer, in batches.

    The format knows neither seeds nor success: seeds are derived (`assemble`), success is False.

    Raises:
        UserError: h5py is not installed, the file is no such buffer, its episodes are longer than the family's or not
            of its dimensions, or the third holds no complete episode.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(INSTALL) from error
    if quality not in THIRDS:
        raise UserError(f"the thirds of a MACAW buffer are {', '.join(THIRDS)}; there is none called {quality}")
    try:
        with h5py.File(path, "r") as buffer:
            _check_columns(path, buffer)
            spans, backward = find_episodes(path, buffer, family.horizon)
            chosen = choose(spans, len(buffer["obs"]), quality, episodes)
            if not chosen:
                raise UserError(f"{path} holds no complete episode in its {quality} third")
            for start in range(0, len(chosen), EPISODES_AT_A_TIME):
                batch = [_trajectory(buffer, span, backward) for span in chosen[start : start + EPISODES_AT_A_TIME]]
                yield assemble(str(path), family, task, batch)
    except OSError as error:
        raise UserError(f"{path} is not a readable HDF5 file: {error}") from error


def choose(spans: list[Span], rows: int, quality: Quality, episodes: int) -> list[Span]:
    """Return the recipe's episodes of a quality out of those of a buffer of `rows` rows."""
    place, third = THIRDS.index(quality), max(rows // 3, 1)
    own = [span for span in spans if min(span.first_row // third, 2) == place]
    begin = (0, max(0, len(own) // 2 - episodes // 2), max(0, len(own) - episodes))[place]
    return own[begin : begin + episodes]


def find_episodes(path: Path, buffer: Any, horizon: int) -> tuple[list[Span], bool]:
    """Return the complete episodes of a buffer, in the order of the training, and whether each runs backwards."""
    ends = np.asarray(buffer["terminals"][:]).reshape(-1) != 0
    linked = _links(path, buffer)
    backward = bool(ends[0]) if linked is None else linked[1]
    # Whether a row begins another episode than the row before it.
    begins = np.ones(len(ends), bool)
    begins[1:] = ends[1:] if backward else ends[:-1]
    if linked is not None:
        begins[1:] |= ~linked[0]
    edges = [*np.flatnonzero(begins).tolist(), len(ends)]
    spans, number = [], 0
    for first, beyond in pairwise(edges):
        if linked is not None and beyond - first > horizon:
            raise UserError(f"{path}: the episode at row {first} has {beyond - first} steps, not up to {horizon}")
        for row in range(first, beyond, horizon):
            length = min(horizon, beyond - row)
            if length == horizon or ends[row if backward else row + length - 1]:
                spans.append(Span(number, row, length))
            number += 1
    return spans, backward


def _check_columns(path: Path, buffer: Any) -> None:
    import h5py

    for key in KEYS:
        if not isinstance(buffer.get(key), h5py.Dataset):
            raise UserError(f"{path} is no MACAW buffer: it has no `{key}`; it needs {', '.join(KEYS)}")
    lengths = {key: len(buffer[key]) for key in KEYS}
    if len(set(lengths.values())) > 1 or not lengths["obs"]:
        raise UserError(f"{path}: its columns have no or different numbers of rows: {lengths}")
    for key in KEYS:
        if buffer[key].dtype.kind not in "biuf":
            raise UserError(f"{path}: {key} are {buffer[key].dtype}, not numbers")


def _links(path: Path, buffer: Any) -> tuple[NDArray[np.bool_], bool] | None:
    """Return (M - 1) whether `next_obs` links each row with the one after, and whether backwards; None without it."""
    if "next_obs" not in buffer:
        return None
    observations, followers, rows = buffer["obs"], buffer["next_obs"], len(buffer["obs"])
    if followers.shape != observations.shape:
        raise UserError(f"{path}: next_obs have shape {followers.shape}, obs {observations.shape}")
    forward, backward = np.zeros(rows - 1, bool), np.zeros(rows - 1, bool)
    for start in range(0, rows - 1, ROWS_AT_A_TIME):
        stop = min(start + ROWS_AT_A_TIME, rows - 1)
        here, after = observations[start : stop + 1], followers[start : stop + 1]
        forward[start:stop] = (after[:-1] == here[1:]).all(axis=1)
        backward[start:stop] = (after[1:] == here[:-1]).all(axis=1)
    if not forward.any() and not backward.any():
        raise UserError(f"{path}: next_obs lead from no row to its neighbour, so its episodes cannot be told apart")
    runs_backward = bool(backward.sum() > forward.sum())
    return (backward if runs_backward else forward), runs_backward


def _trajectory(buffer: Any, span: Span, backward: bool) -> Trajectory:
    rows, step = slice(span.first_row, span.first_row + span.length), -1 if backward else 1
    columns = {key: np.asarray(buffer[key][rows])[::step] for key in ("obs", "actions", "rewards")}
    return Trajectory(span.number, columns["obs"], columns["actions"], columns["rewards"].reshape(span.length))
