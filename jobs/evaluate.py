"""Evaluate every method of an experiment on the unseen test tasks, on a pool of rollout actors.

python jobs/evaluate.py quickstart --evaluation.prompts 32
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pretrain
import torch
import train_diffuser
from workspace import JobOptions, Stage, StageRun, Workspace, run_job

from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import Segments
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.evaluation.blocks import EvaluationBlock, evaluation_blocks
from promptdiffuser.evaluation.policies import AdaptedPolicies
from promptdiffuser.evaluation.results import BlockResults
from promptdiffuser.evaluation.scores import summarise_targets
from promptdiffuser.learning.model_folders import load_backbone, load_diffuser
from promptdiffuser.methods import get_method
from promptdiffuser.methods.inputs import PoolBuilder, prompts_by_task
from promptdiffuser.tasks import get_family

CPU = torch.device("cpu")
EPISODES = "episodes.parquet"
SHOWN = ("mean", "ci_low", "ci_high", "normalised", "diverged")


def stage(workspace: Workspace) -> Stage:
    """Return the evaluate stage."""
    experiment = workspace.experiment
    family = get_family(experiment.family)
    dataset = pretrain.checked_dataset(workspace)
    backbone_folder = pretrain.backbone_folder(workspace)
    backbone, normaliser = load_backbone(backbone_folder, family, CPU)
    diffusing = bool(train_diffuser.diffuser_methods(workspace))
    few_shot = workspace.finished(train_diffuser.few_shot_stage(workspace, family.test_tasks)) if diffusing else None
    settings = {
        "seed": experiment.seed,
        "methods": experiment.methods,
        "evaluation": dataclasses.asdict(experiment.evaluation),
        "dataset": dataset.manifest.digest,
        "backbone": (backbone_folder / "manifest.json").read_text(),
        "few_shot": few_shot.name if few_shot else None,
    }

    def work(run: StageRun) -> None:
        builder = PoolBuilder(
            dataset,
            normaliser,
            backbone.config.prompt_length,
            experiment.diffuser.context_transitions,
            experiment.quality,
        )
        protocol = experiment.evaluation
        # Prompts are sums too: the same on a driver with other cores, or in a Ray job.
        torch.set_num_threads(1)
        prompts: dict[str, dict[int, Segments]] = {}
        costs: dict[str, dict[str, float]] = {}
        for name in experiment.methods:
            started = time.perf_counter()
            method = get_method(name)
            models = {
                task: train_diffuser.few_shot_folder(few_shot, name, task)
                for task in family.test_tasks
                if few_shot and method.trains_diffuser
            }
            prompts[name] = prompts_by_task(
                method,
                family.test_tasks,
                builder,
                protocol.few_shot,
                protocol.num_prompts,
                experiment.seed,
                lambda task, models=models: load_diffuser(models[task] / "model", family, CPU),
            )
            costs[name] = adaptation_cost(list(models.values()), time.perf_counter() - started)
        policies = AdaptedPolicies(backbone, normaliser, prompts)
        requests = protocol.requests(family, experiment.methods, family.test_tasks)
        run_blocks(run, evaluation_blocks(requests, protocol), policies, workspace)
        episodes = pd.read_parquet(run.folder / EPISODES)
        expert_pool = builder.few_shot_pool(family.test_tasks, protocol.few_shot)
        shown = {"expert": _split_by_task(expert_pool.prompts, expert_pool.index.tasks), **prompts}
        summary = summarise(workspace, dataset, episodes, costs)
        log_results(run, shown, summary)

    return Stage("evaluate", "evaluate", settings, work, f"python jobs/evaluate.py {experiment.name}")


def run_blocks(run: StageRun, blocks: list[EvaluationBlock], policies: AdaptedPolicies, workspace: Workspace) -> None:
    """Run the blocks that have no result file yet and write the episodes of all; every finished block is kept."""
    results = BlockResults(run.folder / "blocks")
    missing = [block for block in blocks if not results.has(block.name)]
    run.expect(len(blocks), len(blocks) - len(missing))
    if missing:
        cluster = workspace.experiment.cluster
        connect(cluster)
        pool = RolloutPool(workspace.experiment.family, cluster.rollout_actors, cluster.gpus_per_actor)
        for block, episodes in pool.run(missing, policies):
            results.write(block.name, episodes)
            run.advance()
        run.run.log_metrics({"cost/rollout_actor_memory_gib": pool.peak_memory_gib})
        pool.close()
    results.join([block.name for block in blocks], run.folder / EPISODES)


def adaptation_cost(few_shot_folders: list[Path], prompt_seconds: float) -> dict[str, float]:
    """Return the seconds a method spent on adapting to all target tasks, and how many numbers it tunes for each.

    A method without a diffuser has no few-shot trainings, so it tunes nothing.
    """
    trained = [json.loads((folder / "progress.json").read_text())["seconds"] for folder in few_shot_folders]
    tuned = [json.loads((folder / "model" / "model.json").read_text())["parameters"] for folder in few_shot_folders]
    return {"seconds_adapt": prompt_seconds + sum(trained), "tunable_parameters": max(tuned, default=0)}


def summarise(
    workspace: Workspace, dataset: Dataset, episodes: pd.DataFrame, costs: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Return the content of summary.json."""
    experiment = workspace.experiment
    family = get_family(experiment.family)
    by_target = {
        method: summarise_targets(episodes[episodes.method == method], dataset.manifest.tasks, experiment.seed)
        for method in experiment.methods
    }
    compared_at = f"{experiment.evaluation.targets(family)[0]:g}"
    return {
        "experiment": experiment.name,
        "family": family.name,
        "test_tasks": list(family.test_tasks),
        "tasks": {str(task): family.label(task) for task in family.test_tasks},
        "caution": family.caution,
        "has_success": family.has_success,
        "dataset_digest": dataset.manifest.digest,
        "protocol": dataclasses.asdict(experiment.evaluation),
        "command": workspace.command,
        "seed": experiment.seed,
        "methods": {
            method: targets[compared_at]
            | costs[method]
            | {"targets": {target: {key: of_target[key] for key in SHOWN} for target, of_target in targets.items()}}
            for method, targets in by_target.items()
        },
    }


def log_results(run: StageRun, shown: dict[str, dict[int, Segments]], summary: dict[str, Any]) -> None:
    """Write the artifacts that the report is made from, and the methods' scores as metrics."""
    rows = [
        {"method": method, "task": task, "prompt": number, "features": features}
        for method, by_task in shown.items()
        for task, prompts in by_task.items()
        for number, features in enumerate(PromptSpace.encode(prompts).numpy())
    ]
    pd.DataFrame(rows).to_parquet(run.folder / "prompts.parquet")
    (run.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    for name in (EPISODES, "prompts.parquet", "summary.json"):
        run.run.log_artifact(run.folder / name)
    for method, result in summary["methods"].items():
        run.run.log_metrics({f"evaluation/{method}/{key}": result[key] for key in SHOWN})


def _split_by_task(prompts: Segments, tasks: Any) -> dict[int, Segments]:
    return {int(task): prompts.select(torch.from_numpy(tasks == task)) for task in sorted(set(tasks.tolist()))}


def main(options: JobOptions) -> None:
    """Run the stage."""
    with Workspace(options) as workspace:
        print(workspace.run(stage(workspace)) / "summary.json")


if __name__ == "__main__":
    run_job(main, __doc__ or "")
