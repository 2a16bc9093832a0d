"""Collect the offline dataset of an experiment: rollout actors run the shipped expert on every task.

python jobs/collect.py quickstart
"""

from pathlib import Path

import numpy as np
from workspace import JobOptions, Stage, StageRun, Workspace, run_job

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.manifest import FileRecord, Manifest, TaskRecord, package_versions
from promptdiffuser.data.store import file_record, open_dataset, part_path, read_part, write_part
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.evaluation.blocks import CollectBlock
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import ExpertNetwork, shipped_weights
from promptdiffuser.tasks.family import TaskFamily

DATASET = "dataset"
QUALITIES = ("expert", "random")


def stage(workspace: Workspace) -> Stage:
    """Return the collect stage."""
    experiment = workspace.experiment
    family = get_family(experiment.family)
    episodes = {"expert": experiment.collection.episodes_per_task, "random": experiment.collection.reference_episodes}
    expert = shipped_weights(family.name, "expert")
    settings = {
        "family": family.name,
        "seed": experiment.seed,
        "episodes": episodes,
        "expert": expert.with_suffix(".json").read_text(),
        "versions": package_versions(),
    }

    def work(run: StageRun) -> None:
        folder = run.folder / DATASET
        blocks = [CollectBlock(t, q, episodes[q], experiment.seed) for q in QUALITIES for t in family.tasks]
        missing = [block for block in blocks if not (folder / part_path(block.task, block.quality)).is_file()]
        run.expect(len(blocks), len(blocks) - len(missing))
        if missing:
            connect(experiment.cluster)
            pool = RolloutPool(family.name, experiment.cluster.rollout_actors)
            for block, part in pool.run(missing, {"expert": ExpertNetwork.load(expert)}):
                write_part(folder, block.quality, part)
                run.advance()
            pool.close()
        _write_manifest(folder, family, blocks, workspace.command)
        manifest = open_dataset(folder).manifest
        run.run.log_metrics(
            {
                "data/expert_return": float(np.mean([task.expert_return for task in manifest.tasks.values()])),
                "data/random_return": float(np.mean([task.random_return for task in manifest.tasks.values()])),
                "data/steps": float(sum(record.steps for record in manifest.files.values())),
            }
        )
        run.run.log_artifact(folder / "manifest.json")

    return Stage("collect", "collect", settings, work, f"python jobs/collect.py {experiment.name}")


def dataset_folder(workspace: Workspace) -> Path:
    """Return the dataset that the experiment reads: the one passed, or its own collect stage's."""
    return workspace.options.dataset or workspace.finished(stage(workspace)) / DATASET


def _write_manifest(folder: Path, family: TaskFamily, blocks: list[CollectBlock], command: str) -> None:
    parts: dict[tuple[int, str], Episodes] = {}
    files: dict[str, FileRecord] = {}
    for block in blocks:
        name = part_path(block.task, block.quality)
        parts[block.task, block.quality] = read_part(folder / name, block.task)
        files[name] = file_record(folder / name, block.task, block.quality, parts[block.task, block.quality].lengths)
    Manifest(
        family=family.name,
        observation_dim=family.observation_dim,
        action_dim=family.action_dim,
        horizon=family.horizon,
        seed=blocks[0].seed,
        command=command,
        versions=package_versions(),
        tasks={
            task: TaskRecord(
                goal=family.goal(task),
                random_return=float(parts[task, "random"].returns.mean()),
                expert_return=float(parts[task, "expert"].returns.mean()),
                best_return=float(parts[task, "expert"].returns.max()),
            )
            for task in family.tasks
        },
        files=files,
    ).write(folder)


def main(options: JobOptions) -> None:
    """Run the stage."""
    with Workspace(options) as workspace:
        print(workspace.run(stage(workspace)) / DATASET)


if __name__ == "__main__":
    run_job(main, __doc__ or "")
