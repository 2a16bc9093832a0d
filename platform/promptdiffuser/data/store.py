"""The dataset folder: Parquet files partitioned by task and quality, and the manifest that makes them a dataset.

    DATASET/task=7/quality=expert/part-00000.parquet
    DATASET/manifest.json                             (written last; a file that it does not list is not part of it)

So an interrupted write leaves the dataset as it was before.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.manifest import (
    FILE_NAME,
    PHYSICS_PACKAGE,
    FileRecord,
    Manifest,
    TaskRecord,
    package_versions,
)
from promptdiffuser.data.parts import check_part, episodes_per_part, part_number, read_part, read_seeds, write_part
from promptdiffuser.data.storage import Storage
from promptdiffuser.errors import UserError
from promptdiffuser.rng import SIMULATOR_SEEDS, seed_at
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.tasks.family import TaskFamily
from promptdiffuser.tasks.references import reference_returns

CHECKED_AT_A_TIME = 4
"""Files checked side by side: reading, hashing and decoding leave Python's lock."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """A dataset folder that passed validation."""

    storage: Storage
    manifest: Manifest

    @property
    def location(self) -> str:
        """Where it lies, as it can be opened again."""
        return self.storage.location

    @property
    def family(self) -> TaskFamily:
        """The task family the data belongs to."""
        return get_family(self.manifest.family)

    def files(self, tasks: Collection[int], quality: Quality = "expert") -> list[tuple[str, FileRecord]]:
        """Return (name, record) of the files of some tasks, ordered by task; raises `UserError` naming what lacks."""
        wanted = set(tasks)
        found = [(n, r) for n, r in self.manifest.files.items() if r.quality == quality and r.task in wanted]
        if missing := wanted - {record.task for _, record in found}:
            raise UserError(f"{self.location} has no {quality} episodes of task(s) {sorted(missing)}; collect them")
        return sorted(found, key=lambda pair: (pair[1].task, pair[0]))

    def parts(self, tasks: Collection[int], quality: Quality = "expert") -> Iterator[Episodes]:
        """Yield the episodes of some tasks file by file, in the order of `files`, one file in memory at a time."""
        for name, record in self.files(tasks, quality):
            yield read_part(self.storage, name, record.task)

    def read(self, tasks: Collection[int], quality: Quality = "expert") -> Episodes:
        """Read all episodes of some tasks into memory."""
        return Episodes.concatenate(list(self.parts(tasks, quality)))

    def check_few_shot(self, task: int, config: FewShotConfig) -> None:
        """Raise a `UserError` if a task has too few episodes for its few-shot set."""
        count = sum(record.episodes for _, record in self.files([task], config.quality))
        if count < config.episodes:
            raise UserError(
                f"{self.location} has {count} {config.quality} episodes of task {task}, a few-shot set needs "
                f"{config.episodes}; collect more or lower --evaluation.few-shot.episodes"
            )

    def few_shot(self, tasks: Collection[int], config: FewShotConfig) -> Episodes:
        """Read the few-shot set of some tasks; raises `UserError` naming a task that has too few episodes."""
        sets = []
        for task in sorted(tasks):
            self.check_few_shot(task, config)
            sets.append(config.choose(self.read([task], config.quality)))
        return Episodes.concatenate(sets)


def open_dataset(location: str | Path | Storage) -> Dataset:
    """Open a dataset folder on any filesystem and validate all of it.

    Every file is read once: checksum, columns, dimensions, lengths, finite numbers. Episodes of a task and quality with
    equal seeds are said in a warning.

    Raises:
        UserError: The manifest is missing or edited, a file is missing or changed, the data is not the family's or not
            finite, or it was made with another physics version. The message says which and what to do.
    """
    storage = location if isinstance(location, Storage) else Storage.at(location)
    location, manifest = storage.location, Manifest.read(storage)
    try:
        family = get_family(manifest.family)
    except UserError as error:
        raise UserError(f"{location} cannot be used: {error}; collect it again") from error
    expected = (family.observation_dim, family.action_dim, family.horizon)
    found = (manifest.observation_dim, manifest.action_dim, manifest.horizon)
    if found != expected:
        raise UserError(
            f"{location}: (observation, action, horizon) is {found}, {family.name} has {expected}; collect it again"
        )
    made_with, here = manifest.versions[PHYSICS_PACKAGE], package_versions()[PHYSICS_PACKAGE]
    if made_with != here:
        raise UserError(
            f"{location} was made with {PHYSICS_PACKAGE} {made_with}, installed is {here}: physics differs between "
            "versions; install that version or collect the dataset again"
        )
    _check_files(storage, family, manifest.files)
    return Dataset(storage, manifest)


def _check_files(storage: Storage, family: TaskFamily, files: Mapping[str, FileRecord]) -> None:
    seeds = defaultdict[tuple[int, str], list[NDArray[np.int64]]](list)
    with ThreadPoolExecutor(CHECKED_AT_A_TIME) as threads:
        checks = [threads.submit(check_part, storage, family, *file) for file in files.items()]
        try:
            for record, check in zip(files.values(), checks, strict=True):
                seeds[record.task, record.quality].append(check.result())
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    for (task, quality), of_files in seeds.items():
        together = np.concatenate(of_files)
        if repeated := len(together) - len(np.unique(together)):
            log.warning(
                "%s: %d of %d %s episodes of task %d have the seed of another, so the same steps are drawn from them; "
                "import them again",
                *(storage.location, repeated, len(together), quality, task),
            )


class DatasetWriter:
    """Makes a dataset or adds to one; nothing of it counts before `commit`."""

    def __init__(self, location: str | Path, family: TaskFamily, command: str, seed: int | None = None) -> None:
        """Begin with the dataset at the location, or with an empty one where there is none.

        Raises:
            UserError: The dataset there belongs to another family.
        """
        self.storage, self.family = Storage.at(location), family
        if self.storage.has(FILE_NAME):
            before = open_dataset(self.storage).manifest
            if before.family != family.name:
                raise UserError(f"{location} holds {before.family}, {family.name} cannot be added to it")
            self._manifest = replace(before, commands=(*before.commands, command))
        else:
            self._manifest = Manifest(
                family=family.name,
                observation_dim=family.observation_dim,
                action_dim=family.action_dim,
                horizon=family.horizon,
                seed=seed,
                commands=(command,),
                versions=package_versions(),
                tasks={},
                files={},
            )
        self._files = dict(self._manifest.files)
        self._seeds: dict[str, NDArray[np.int64]] = {}

    def add(self, quality: Quality, episodes: Episodes) -> None:
        """Write episodes of any mix of tasks, in files of bounded size after those already there.

        An episode whose seed an earlier one of its task and quality has gets another, which depends on its seed and its
        number: later stages draw from an episode by its seed.
        """
        for task in np.unique(episodes.tasks).tolist():
            of_task = episodes.select(episodes.tasks == task)
            before = {n: r for n, r in self._files.items() if (r.task, r.quality) == (task, quality)}
            first = sum(record.episodes for record in before.values())
            number = max((part_number(name) for name in before), default=-1) + 1
            of_task = replace(of_task, seeds=self._distinct(task, quality, of_task.seeds, before, first))
            size = episodes_per_part(self.family)
            for start in range(0, len(of_task), size):
                piece = of_task.select(slice(start, start + size))
                self.adopt(*write_part(self.storage, self.family, quality, number, piece, first + start))
                number += 1

    def adopt(self, name: str, record: FileRecord) -> None:
        """Take in a file that was written by `write_part` elsewhere."""
        self._files[name] = record
        self._seeds.pop(name, None)

    def _distinct(
        self, task: int, quality: Quality, seeds: NDArray[np.int64], before: Collection[str], first: int
    ) -> NDArray[np.int64]:
        for name in before:
            if name not in self._seeds:
                self._seeds[name] = read_seeds(self.storage, name)
        taken, distinct = {seed for name in before for seed in self._seeds[name].tolist()}, seeds.copy()
        for row, seed in enumerate(seeds.tolist()):
            while seed in taken:
                seed = seed_at("repeated", task, quality, first + row, seed) % SIMULATOR_SEEDS
            taken.add(seed)
            distinct[row] = seed
        if changed := int((distinct != seeds).sum()):
            log.warning(
                "%s: %d of %d %s episodes of task %d have the seed of an earlier one and get another, from which the "
                "simulator does not repeat them",
                *(self.storage.location, changed, len(seeds), quality, task),
            )
        return distinct

    def commit(self) -> Dataset:
        """Validate the new files, write the manifest and return the dataset.

        Raises:
            UserError: A new file is damaged or not the family's; the dataset is then what it was before.
        """
        references = reference_returns(self.family)
        _check_files(self.storage, self.family, dict(self._files.items() - self._manifest.files.items()))
        tasks = sorted({record.task for record in self._files.values()})
        manifest = replace(
            self._manifest,
            tasks={
                task: TaskRecord(self.family.goal(task), references[task].random_return, references[task].expert_return)
                for task in tasks
            },
            files=dict(sorted(self._files.items())),
        )
        manifest.write(self.storage)
        return Dataset(self.storage, manifest)
