"""Collect the offline dataset of an experiment: rollout actors run the family's experts on every task.

python jobs/collect.py quickstart
"""

from pathlib import Path

from promptdiffuser.data.manifest import FileRecord, package_versions
from promptdiffuser.data.parts import describe_part, read_part
from promptdiffuser.data.storage import Storage
from promptdiffuser.data.store import DatasetWriter
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.pipeline.options import JobOptions
from promptdiffuser.pipeline.session import Stage, StageRun, Workspace
from promptdiffuser.rollout.blocks import CollectBlock, collect_blocks
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import Demonstrator, Quality, demonstrators, shipped_file
from promptdiffuser.tasks.references import reference_returns

DATASET = "dataset"


def stage(workspace: Workspace) -> Stage:
    """Return the collect stage."""
    experiment = workspace.experiment
    family, wanted = get_family(experiment.family), experiment.collection
    reference_returns(family)  # The manifest holds them: if they are missing, say so before anything is collected.
    makers: dict[Quality, Demonstrator] = {}
    for quality in wanted.qualities:
        makers |= demonstrators(family, quality)
    settings = {
        "family": family.name,
        "seed": wanted.seed,
        "qualities": wanted.qualities,
        "episodes": wanted.episodes_per_task,
        "demonstrators": {quality: shipped_file(family, quality, "json").read_text() for quality in makers},
        "versions": package_versions(),
    }

    def work(run: StageRun) -> None:
        folder = run.folder / DATASET
        storage = Storage.at(str(folder))
        blocks = [
            block
            for quality in wanted.qualities
            for task in family.tasks
            for block in collect_blocks(storage, family, task, quality, wanted.episodes_per_task, wanted.seed)
        ]
        if not all(storage.has(block.name) for block in blocks):
            # A damaged file was removed, and the writer takes no manifest that names it.
            (folder / "manifest.json").unlink(missing_ok=True)
        writer = DatasetWriter(folder, family, workspace.command, wanted.seed)
        missing = []
        for block in blocks:
            if writer.storage.has(block.name):
                writer.adopt(block.name, found_record(writer.storage, block))
            else:
                missing.append(block)
        run.expect(len(blocks), len(blocks) - len(missing))
        if missing:
            cluster = experiment.cluster
            connect(cluster)
            with RolloutPool(family.name, cluster.rollout_actors, block_limit_s=cluster.block_limit_s) as pool:
                for block, record in pool.run(missing, makers):
                    writer.adopt(block.name, record)
                    run.advance()
        manifest = writer.commit().manifest
        records = manifest.files.values()
        run.run.log_metrics(
            {
                "cost/environment_episodes": float(sum(record.episodes for record in records)),
                "cost/environment_steps": float(sum(record.steps for record in records)),
            }
            | {f"data/{q}/return": mean_return([r for r in records if r.quality == q]) for q in wanted.qualities}
        )
        run.run.log_artifact(run.folder / DATASET / "manifest.json")

    command = f"python jobs/collect.py {experiment.name}"
    return Stage("collect", "collect", settings, work, command, outputs=(Path(DATASET),))


def found_record(storage: Storage, block: CollectBlock) -> FileRecord:
    """Describe a file that an interrupted run of the stage finished."""
    return describe_part(storage, block.name, block.task, block.quality, read_part(storage, block.name, block.task))


def mean_return(records: list[FileRecord]) -> float:
    """Return the mean over all episodes of some files."""
    return sum(r.return_mean * r.episodes for r in records) / sum(r.episodes for r in records)


def dataset_location(workspace: Workspace) -> str:
    """Return the dataset that the experiment reads: the one passed, or its own collect stage's."""
    if workspace.base is not None:
        return dataset_location(workspace.base)
    return workspace.options.dataset or str(workspace.finished(stage(workspace)) / DATASET)


def main(options: JobOptions) -> None:
    """Run the stage."""
    with Workspace(options) as workspace:
        workspace.check_rerun(["collect"])
        print(workspace.run(stage(workspace)) / DATASET)
