"""Rollout actors run the family's experts on every task; what an interrupted run wrote is kept."""

from collections.abc import Mapping

from promptdiffuser.data.manifest import FileRecord
from promptdiffuser.data.parts import describe_part, read_part
from promptdiffuser.data.storage import Storage
from promptdiffuser.data.store import DatasetWriter
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.experiment import Experiment
from promptdiffuser.pipeline.session import StageRun
from promptdiffuser.pipeline.stages.collect import DATASET
from promptdiffuser.rollout.blocks import CollectBlock, collect_blocks
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import Demonstrator, Quality
from promptdiffuser.tracking.provenance import typed_command


def collect(run: StageRun, experiment: Experiment, makers: Mapping[Quality, Demonstrator]) -> None:
    """Write the dataset into the stage's folder."""
    family, wanted, cluster = get_family(experiment.family), experiment.collection, experiment.cluster
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
    writer = DatasetWriter(folder, family, typed_command(), wanted.seed)
    missing = []
    for block in blocks:
        if writer.storage.has(block.name):
            writer.adopt(block.name, found_record(writer.storage, block))
        else:
            missing.append(block)
    run.expect(len(blocks), len(blocks) - len(missing))
    if missing:
        connect(cluster)
        with RolloutPool(family.name, cluster.rollout_actors, block_limit_s=cluster.block_limit_s) as pool:
            for block, record in pool.run(missing, makers):
                writer.adopt(block.name, record)
                run.advance()
    records = writer.commit().manifest.files.values()
    run.log.log_metrics(
        {
            "cost/environment_episodes": float(sum(record.episodes for record in records)),
            "cost/environment_steps": float(sum(record.steps for record in records)),
        }
        | {f"data/{q}/return": mean_return([r for r in records if r.quality == q]) for q in wanted.qualities}
    )
    run.log.log_artifact(folder / "manifest.json")


def found_record(storage: Storage, block: CollectBlock) -> FileRecord:
    """Describe a file that an interrupted run of the stage finished."""
    return describe_part(storage, block.name, block.task, block.quality, read_part(storage, block.name, block.task))


def mean_return(records: list[FileRecord]) -> float:
    """Return the mean over all episodes of some files."""
    return sum(r.return_mean * r.episodes for r in records) / sum(r.episodes for r in records)
