"""Exchange datasets with other formats: MACAW's buffers in, Minari datasets in and out.

    python jobs/exchange.py from-macaw cheetah-vel macaw_offline_data/cheetah_vel datasets/macaw
    python jobs/exchange.py to-minari outputs/quickstart/collect-1a2b3c4d/dataset --tasks 7
    python jobs/exchange.py from-minari promptdiffuser/cheetah-vel/task-7-expert-v0 datasets/again

Both formats need the extra `interchange` (h5py and Minari). Minari datasets lie below MINARI_DATASETS_PATH, or
~/.minari/datasets. Published pickles have a job of their own, import_pickles.py.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, get_args

import tyro
from rich.console import Console

from promptdiffuser.console import open_console
from promptdiffuser.data.formats import macaw, minari_io
from promptdiffuser.data.store import Dataset, DatasetWriter, open_dataset
from promptdiffuser.errors import UserError
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.tasks.family import TaskFamily
from promptdiffuser.tracking.provenance import typed_command


@dataclass(frozen=True)
class FromMacaw:
    """Import thirds of MACAW's replay buffers as qualities."""

    family: Annotated[str, tyro.conf.Positional]
    """Task family whose episodes they are."""
    source: Annotated[Path, tyro.conf.Positional]
    """Folder of files buffers_ENV_train_ID_sub_task_0.hdf5, or one file."""
    dataset: Annotated[str, tyro.conf.Positional]
    """Dataset to make or to add to: a folder, or an s3:// or gs:// address."""
    qualities: tuple[Quality, ...] = macaw.THIRDS
    """random: the beginning of the first third; medium: the middle of the second; expert: the end of the last."""
    tasks: tuple[int, ...] = ()
    """Tasks to import; all that are there if none are given."""
    episodes: int = macaw.EPISODES
    """Episodes of each task and quality, or what there are."""

    def run(self, console: Console) -> None:
        family = get_family(self.family)
        if self.episodes < 1:
            raise UserError(f"--episodes must be at least 1, got {self.episodes}")
        files = self.files()
        writer = new_writer(self.dataset, family)
        for task, path in sorted(files.items()):
            for quality in self.qualities:
                count, total = 0, 0.0
                for episodes in macaw.read_macaw_buffer(path, family, task, quality, self.episodes):
                    writer.add(quality, episodes)
                    count, total = count + len(episodes), total + float(episodes.returns.sum())
                console.print(f"{path}: task {task}, {quality}, {count} episodes, mean return {total / count:.2f}")
        say_made(console, writer.commit())

    def files(self) -> dict[int, Path]:
        """Return the file of each task."""
        if self.source.is_file() and len(self.tasks) == 1:
            return {self.tasks[0]: self.source}
        paths = [self.source] if self.source.is_file() else sorted(self.source.glob("*.*5"))
        found = {task: path for path in paths if (task := macaw.file_task(path.name)) is not None}
        if not found:
            raise UserError(
                f"{self.source} has no file named buffers_ENV_train_ID_sub_task_0.hdf5; or give a file and --tasks ID"
            )
        if missing := set(self.tasks) - set(found):
            raise UserError(f"{self.source} has no buffer of task(s) {sorted(missing)}")
        return {task: path for task, path in found.items() if not self.tasks or task in self.tasks}


@dataclass(frozen=True)
class FromMinari:
    """Import a local Minari dataset as the episodes of one task and quality."""

    name: Annotated[str, tyro.conf.Positional]
    """Id of the Minari dataset; `minari download ID` fetches public ones."""
    dataset: Annotated[str, tyro.conf.Positional]
    """Dataset to make or to add to: a folder, or an s3:// or gs:// address."""
    family: str | None = None
    """Task family, if the Minari dataset does not say; those that `to-minari` wrote do."""
    task: int | None = None
    """Task id, if the Minari dataset does not say."""
    quality: Quality | None = None
    """Quality, if the Minari dataset does not say."""

    def run(self, console: Console) -> None:
        origin = minari_io.read_origin(self.name)
        family_name = self.family or origin.family
        task = self.task if self.task is not None else origin.task
        quality = self.quality or origin.quality
        if family_name is None or task is None or quality is None:
            raise UserError(
                f"Minari dataset {self.name} does not say which episodes of ours it holds; give --family, --task and "
                "--quality"
            )
        if quality not in get_args(Quality):
            raise UserError(f"Minari dataset {self.name} says quality {quality!r}; give --quality")
        family = get_family(family_name)
        writer, count = new_writer(self.dataset, family), 0
        for episodes in minari_io.read_minari(self.name, family, task):
            writer.add(quality, episodes)
            count += len(episodes)
        console.print(f"{self.name}: task {task}, {quality}, {count} episodes")
        say_made(console, writer.commit())


@dataclass(frozen=True)
class ToMinari:
    """Export episodes as Minari datasets, one a task and quality."""

    dataset: Annotated[str, tyro.conf.Positional]
    """Dataset to export: a folder, or an s3:// or gs:// address."""
    qualities: tuple[Quality, ...] = ("expert",)
    """Qualities to export."""
    tasks: tuple[int, ...] = ()
    """Tasks to export; all that are there if none are given."""
    final_observation: minari_io.FinalObservation = "simulated"
    """Where the observation after the last action comes from, which Minari needs and our datasets lack: from running
    each episode again, which must repeat it exactly; or from nowhere, and the last transition is left out."""
    version: int = 0
    """Version in the names of the Minari datasets."""
    credits: minari_io.Credits = field(default_factory=minari_io.Credits)

    def run(self, console: Console) -> None:
        dataset = open_dataset(self.dataset)
        there = sorted({(record.task, record.quality) for record in dataset.manifest.files.values()})
        chosen = [(t, q) for t, q in there if q in self.qualities and (not self.tasks or t in self.tasks)]
        wanted = {(t, q) for t in self.tasks or [t for t, _ in chosen] for q in self.qualities}
        if missing := sorted(wanted - set(chosen)):
            raise UserError(f"{self.dataset} has no {missing[0][1]} episodes of task {missing[0][0]}")
        if not chosen:
            raise UserError(f"{self.dataset} has no {' or '.join(self.qualities)} episodes")
        for task, quality in chosen:
            name = minari_io.export_minari(
                dataset,
                task,
                next(known for known in self.qualities if known == quality),
                self.final_observation,
                self.version,
                self.credits,
            )
            console.print(name, markup=False, highlight=False)


Exchange = (
    Annotated[FromMacaw, tyro.conf.subcommand("from-macaw")]
    | Annotated[FromMinari, tyro.conf.subcommand("from-minari")]
    | Annotated[ToMinari, tyro.conf.subcommand("to-minari")]
)


def new_writer(location: str, family: TaskFamily) -> DatasetWriter:
    """Begin a dataset of imported episodes, or go on with one."""
    return DatasetWriter(location, family, typed_command())


def main(job: FromMacaw | FromMinari | ToMinari) -> None:
    """Run the command."""
    job.run(open_console(soft_wrap=True))


def say_made(console: Console, dataset: Dataset) -> None:
    """Print what was made."""
    console.print(f"{dataset.location}: digest {dataset.manifest.digest}")
