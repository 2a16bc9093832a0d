"""Import the pickles that Prompt-DT and its followers publish as a dataset.

    python jobs/import_pickles.py cheetah-vel data/cheetah_vel datasets/published

Reads files named ENV-ID-MODE.pkl, `cheetah_vel-7-expert.pkl` for task 7 and quality expert; ENV is not looked at. A
pickle is a program: these are decoded as plain numeric arrays, and a file that asks for anything else is refused before
any of it runs. A job of its own, so that nothing else ever reads a pickle.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from promptdiffuser.console import open_console
from promptdiffuser.data.formats.prompt_dt import file_task, read_prompt_dt_pickle
from promptdiffuser.data.store import DatasetWriter
from promptdiffuser.errors import UserError
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.tracking.provenance import typed_command


@dataclass(frozen=True)
class ImportPickles:
    """Command line of the job."""

    family: Annotated[str, tyro.conf.Positional]
    """Task family whose episodes they are."""
    source: Annotated[Path, tyro.conf.Positional]
    """Folder of such files, or one of them."""
    dataset: Annotated[str, tyro.conf.Positional]
    """Dataset to make or to add to: a folder, or an s3:// or gs:// address."""
    qualities: tuple[Quality, ...] = ("expert",)
    """Modes to import."""
    tasks: tuple[int, ...] = ()
    """Tasks to import; all that are there if none are given."""


def wanted_files(job: ImportPickles) -> Iterator[tuple[Path, int, Quality]]:
    """Yield (file, task, quality) in the order of the tasks; raises `UserError` if there are none."""
    files = [job.source] if job.source.is_file() else sorted(job.source.glob("*.pkl"))
    found = []
    for path in files:
        task, mode = file_task(path.name) or (-1, "")
        quality = next((quality for quality in job.qualities if quality == mode), None)
        if quality is not None and (not job.tasks or task in job.tasks):
            found.append((path, task, quality))
    if missing := set(job.tasks) - {task for _, task, _ in found}:
        raise UserError(f"{job.source} has no {' or '.join(job.qualities)} file of task(s) {sorted(missing)}")
    if not found:
        raise UserError(
            f"{job.source} has no file named ENV-ID-MODE.pkl with a MODE of {', '.join(job.qualities)}; "
            "prompt files (ENV-ID-prompt-MODE.pkl) hold episodes that the others hold too and are not imported"
        )
    yield from sorted(found, key=lambda item: (item[1], item[2]))


def main(job: ImportPickles) -> None:
    """Run the job."""
    family, console = get_family(job.family), open_console(soft_wrap=True)
    files = list(wanted_files(job))
    writer = DatasetWriter(job.dataset, family, typed_command())
    for path, task, quality in files:
        episodes = read_prompt_dt_pickle(path, family, task)
        writer.add(quality, episodes)
        console.print(
            f"{path}: task {task}, {quality}, {len(episodes)} episodes, mean return {episodes.returns.mean():.2f}"
        )
    dataset = writer.commit()
    console.print(f"{dataset.location}: digest {dataset.manifest.digest}")
