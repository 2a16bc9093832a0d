"""Which windows every update sees: plans, drawn at an address.

A *plan* says which episode, start and prompt each row of a global batch uses. Every worker draws the same one from the
index of all episodes and takes the rows whose episode it holds. So a batch is the same set of windows for any number of
workers and after any interruption, and for data that is resident or streamed, if they fit into one round of the stream.

Axes: N episodes, B rows of a batch, C episodes of a context.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from promptdiffuser.data.manifest import FileRecord
from promptdiffuser.rng import numpy_generator

Address = tuple[int | str, ...]


@dataclass(frozen=True, eq=False)
class EpisodeIndex:
    """Task and length of every episode that training may use: all that a plan needs, known to every worker."""

    tasks: NDArray[np.int64]
    """(N,) ascending."""
    lengths: NDArray[np.int64]
    """(N,)"""

    def __post_init__(self) -> None:
        """Refuse an index that is not grouped by task."""
        if (np.diff(self.tasks) < 0).any():
            raise ValueError("EpisodeIndex.tasks must be ascending")

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.tasks)

    @cached_property
    def task_ids(self) -> NDArray[np.int64]:
        """The tasks, each once."""
        return np.unique(self.tasks)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """(N,) steps of all episodes up to the end of each."""
        ends: NDArray[np.int64] = np.cumsum(self.lengths)
        return ends

    def select(self, episodes: NDArray[np.int64] | slice) -> "EpisodeIndex":
        """Return the index of some episodes."""
        return EpisodeIndex(self.tasks[episodes], self.lengths[episodes])

    def pool_of(self, drawn_tasks_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first episode and the number of episodes of each drawn task."""
        first = np.searchsorted(self.tasks, drawn_tasks_B, side="left")
        last = np.searchsorted(self.tasks, drawn_tasks_B, side="right")
        return first, last - first


@dataclass(frozen=True)
class WindowPlan:
    """Where each row of a global batch comes from."""

    episodes: NDArray[np.int64]
    """(B,) episode of the history window."""
    starts: NDArray[np.int64]
    """(B,) first step of the window."""
    prompt_episodes: NDArray[np.int64]
    """(B,) episode of the same task that the prompt is cut from."""
    context_episodes: NDArray[np.int64]
    """(B, C) episodes of the same task that the task context is read from."""
    window_steps: int
    """Steps in a window."""

    def steps(self, index: EpisodeIndex) -> int:
        """Return the number of valid steps in the global batch."""
        return int(np.minimum(index.lengths[self.episodes] - self.starts, self.window_steps).sum())

    def select(self, rows: NDArray[np.intp]) -> "WindowPlan":
        """Return some rows of the plan."""
        of_rows = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "window_steps"}
        return WindowPlan(**of_rows, window_steps=self.window_steps)


@dataclass(frozen=True)
class RoundsConfig:
    """How streamed history windows are spread over a dataset that is larger than memory.

    A round is a stretch of updates whose history windows come from some of the dataset's files; rounds go through all
    files in an order of their own in every epoch. Prompts come from all episodes. A dataset that fits into one round,
    and every dataset that is resident, has none: each of its updates draws from everything.
    """

    env_steps: int = 3_200_000
    """Environment steps that are held for a round at most, a few hundred bytes each; a round has at least one file."""
    updates: int = 200
    """Updates in a round."""

    def __post_init__(self) -> None:
        """Check that a round has data and updates."""
        for name in ("env_steps", "updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"rounds.{name} must be at least 1, got {getattr(self, name)}")


class FileSize(NamedTuple):
    """What rounds need to know of a file; it holds episodes of one task."""

    task: int
    episodes: int
    env_steps: int


@dataclass(frozen=True)
class Rounds:
    """The rounds of one training.

    The files of every task lie at even distances in the order of an epoch, so every round covers every task as evenly
    as possible: it has the same number of files of a task, or one more, as any other round. Where a round cannot hold
    a file of every task, the tasks take turns, and each is in one round of an epoch at least.
    """

    config: RoundsConfig = field(default_factory=RoundsConfig)
    sizes: tuple[FileSize, ...] = ()
    """The dataset's files, in the order of the index; empty for resident data, which has no rounds."""

    @staticmethod
    def over(config: RoundsConfig, records: Iterable[FileRecord]) -> "Rounds":
        """Return the rounds of a training on some files, in the order of the index."""
        return Rounds(config, tuple(FileSize(record.task, record.episodes, record.steps) for record in records))

    @cached_property
    def per_epoch(self) -> int:
        """Rounds in which all files have their turn; 1 where one round holds them all."""
        env_steps = [size.env_steps for size in self.sizes]
        if sum(env_steps) <= self.config.env_steps:
            return 1
        return math.ceil(len(env_steps) / max(1, self.config.env_steps // max(env_steps)))

    @property
    def settings(self) -> dict[str, int] | None:
        """What of the rounds decides the batches; None where one round holds everything."""
        return asdict(self.config) if self.per_epoch > 1 else None

    def number(self, step: int) -> int:
        """Return the round of an update; data that one round can hold has a single one, without end."""
        return step // self.config.updates if self.per_epoch > 1 else 0

    def files(self, number: int, address: Address) -> tuple[int, ...]:
        """Return the files of a round, ascending."""
        epoch, place = divmod(number, self.per_epoch)
        return tuple(sorted(np.array_split(self._order(epoch, address), self.per_epoch)[place].tolist()))

    def _order(self, epoch: int, address: Address) -> NDArray[np.int64]:
        """Return all files (F,) in the order of an epoch: shuffled, those of a task at even distances."""
        generator = numpy_generator(*address, "files", epoch)
        shuffled_F, tasks_F = generator.permutation(len(self.sizes)), np.array([size.task for size in self.sizes])
        by_task_F = shuffled_F[np.argsort(tasks_F[shuffled_F], kind="stable")]
        _, first_T, count_T = np.unique(tasks_F[by_task_F], return_index=True, return_counts=True)
        # The first files of the tasks, too, lie at even distances, in an order of their own.
        start_T = generator.permutation(len(count_T)) / len(count_T)
        place_F = np.arange(len(by_task_F)) - np.repeat(first_T, count_T)
        order_F: NDArray[np.int64] = by_task_F[
            np.argsort((place_F + np.repeat(start_T, count_T)) / np.repeat(count_T, count_T), kind="stable")
        ]
        return order_F

    def episodes(self, number: int, address: Address, index: EpisodeIndex) -> NDArray[np.int64]:
        """Return the episodes that the windows of a round come from, ascending."""
        if not self.sizes:
            return np.arange(len(index))
        return np.concatenate([episodes for _, episodes in self.files_with_episodes(number, address)])

    def files_with_episodes(self, number: int, address: Address) -> list[tuple[int, NDArray[np.int64]]]:
        """Return the files of a round, ascending, each with the episodes in it."""
        counts = [size.episodes for size in self.sizes]
        ends = np.cumsum(counts)
        return [(f, np.arange(ends[f] - counts[f], ends[f])) for f in self.files(number, address)]


@dataclass(frozen=True)
class Planner:
    """Draws the plan of every update of one training."""

    index: EpisodeIndex
    batch_size: int
    window_steps: int | None
    """Steps in a window; None for whole episodes."""
    address: Address
    num_context: int = 0
    """Episodes of a task context."""
    rounds: Rounds = field(default_factory=Rounds)

    def __post_init__(self) -> None:
        """Check that the rounds are of the data that the index describes."""
        if self.rounds.sizes and (in_files := sum(size.episodes for size in self.rounds.sizes)) != len(self.index):
            raise ValueError(f"the files of the rounds hold {in_files} episodes, the index has {len(self.index)}")

    def at(self, step: int) -> WindowPlan:
        """Draw a plan: tasks uniform, then steps uniform within the task, or episodes where they are seen whole.

        Within a task this is the published rule (mxu34/prompt-dt at 5f665e5, pdt_main.py `get_batch`: episode in
        proportion to its length, start uniform); the published batch holds equally many rows of every task instead of
        drawing tasks.
        """
        generator, size = numpy_generator(*self.address, step), self.batch_size
        members, drawable = _round_index(self, self.rounds.number(step))
        tasks_B = generator.choice(drawable.task_ids, size)
        first_B, count_B = drawable.pool_of(tasks_B)
        if self.window_steps is None:
            drawn_B, starts_B = _draw(generator, first_B, count_B), np.zeros(size, np.int64)
        else:
            begins_N = drawable.ends - drawable.lengths
            total_B = drawable.ends[first_B + count_B - 1] - begins_N[first_B]
            step_B = _draw(generator, begins_N[first_B], total_B)
            drawn_B = np.searchsorted(drawable.ends, step_B, side="right")
            starts_B = step_B - begins_N[drawn_B]
        first_B, count_B = self.index.pool_of(tasks_B)
        return WindowPlan(
            episodes=members[drawn_B],
            starts=starts_B,
            prompt_episodes=_draw(generator, first_B, count_B),
            context_episodes=_draw(generator, *(np.tile(x[:, None], self.num_context) for x in (first_B, count_B))),
            window_steps=self.window_steps or int(self.index.lengths.max()),
        )


def _draw(generator: np.random.Generator, first: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw a number from [first, first + count), element by element."""
    drawn: NDArray[np.int64] = first + (generator.random(first.shape) * count).astype(np.int64)
    return drawn


@lru_cache(maxsize=8)
def _round_index(planner: Planner, number: int) -> tuple[NDArray[np.int64], EpisodeIndex]:
    """Return the episodes of a round and their index."""
    members = planner.rounds.episodes(number, planner.address, planner.index)
    return members, planner.index.select(members)


def held_out_plan(planner: Planner, index: EpisodeIndex, repeats: int = 1) -> WindowPlan:
    """Return windows (W,) side by side over each held-out episode of a few-shot set, all of them once a repeat.

    Prompts and contexts come from the episodes that are not held out.

    Args:
        planner: Draws from the first episodes of the set, those that are not held out.
        index: All episodes of the set.
        repeats: How often every window is in the plan, each time with another prompt.
    """
    num_seen, lengths = len(planner.index), index.lengths
    size = planner.window_steps or int(lengths.max())
    windows = [(e, s) for e in range(num_seen, len(lengths)) for s in range(0, int(lengths[e]), size)] * repeats
    episodes, starts = np.array(windows, np.int64).T
    return WindowPlan(
        episodes=episodes,
        starts=starts,
        prompt_episodes=np.arange(len(windows)) % num_seen,
        context_episodes=np.tile(np.arange(num_seen), (len(windows), 1)),
        window_steps=size,
    )
