"""The offline dataset of an experiment, collected by the family's experts."""

from pathlib import Path
from typing import TYPE_CHECKING

from promptdiffuser.data.manifest import Manifest, package_versions
from promptdiffuser.data.storage import Storage
from promptdiffuser.experiment import Experiment
from promptdiffuser.pipeline.graph import Given, Stage
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import Demonstrator, Quality, demonstrators, shipped_file
from promptdiffuser.tasks.references import reference_returns

if TYPE_CHECKING:
    from promptdiffuser.pipeline.session import StageRun

VERSION = 1
DATASET = Path("dataset")


def stage(experiment: Experiment) -> Stage:
    """Return the stage that collects the dataset."""
    family, wanted, cluster = get_family(experiment.family), experiment.collection, experiment.cluster
    makers: dict[Quality, Demonstrator] = {}
    for quality in wanted.qualities:
        makers |= demonstrators(family, quality)
    reference_returns(family)  # The manifest holds them: if they are missing, say so before anything is collected.

    def work(run: "StageRun") -> None:
        from promptdiffuser.pipeline.work.collect import collect

        collect(run, experiment, makers)

    return Stage(
        "collect",
        "collect",
        f"promptdiffuser stage collect {experiment.name}",
        {
            "family": family.name,
            "seed": wanted.seed,
            "qualities": wanted.qualities,
            "episodes": wanted.episodes_per_task,
            "demonstrators": {quality: shipped_file(family, quality, "json").read_text() for quality in makers},
            "versions": package_versions(),
        },
        work,
        VERSION,
        outputs=(DATASET,),
        product=DATASET,
        takes=f"{cluster.rollout_actors} rollout actors",
        content_of=lambda folder: Manifest.read(Storage.at(str(folder / DATASET))).digest,
        progress=lambda root, folder: f"{len(list(folder.rglob('*.parquet')))} files",
    )


def given(location: str) -> Given:
    """Return a dataset that the user passes; raises `UserError` if none lies there."""
    return Given("dataset", location, Manifest.read(Storage.at(location)).digest)
