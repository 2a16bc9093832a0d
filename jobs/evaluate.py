"""Evaluate every method of an experiment on the unseen test tasks, on a pool of rollout actors.

    python jobs/evaluate.py quickstart --evaluation.prompts 32

A method's episodes lie in a folder named by what they are, so a longer list of methods plays the new ones alone.
"""

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import adapt
import pandas as pd
import pretrain
import torch
from workspace import JobOptions, Stage, StageRun, Workspace, fingerprint_of, run_job

from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import Segments
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.evaluation.blocks import EvaluationBlock, evaluation_blocks
from promptdiffuser.evaluation.policies import AdaptedPolicies, AdaptedPolicy
from promptdiffuser.evaluation.results import BlockResults
from promptdiffuser.evaluation.scores import summarise_targets
from promptdiffuser.experiment import ClusterConfig
from promptdiffuser.learning.model_folders import load_backbone
from promptdiffuser.methods import get_method
from promptdiffuser.methods.adaptation import Adaptation, Cost
from promptdiffuser.methods.folders import load_adaptation
from promptdiffuser.methods.inputs import InputsBuilder
from promptdiffuser.tasks import get_family
from promptdiffuser.tracking.store import STAGE_TAG

CPU = torch.device("cpu")
EPISODES = "episodes.parquet"
SHOWN = ("mean", "ci_low", "ci_high", "normalised", "diverged")


@dataclass(frozen=True)
class MethodEvaluation:
    """What a method made of the test tasks, and where its episodes are written."""

    method: str
    fingerprint: str
    folder: Path
    adaptations: dict[int, Adaptation]

    @property
    def blocks(self) -> BlockResults:
        """The method's finished blocks."""
        return BlockResults(self.folder / "blocks")

    @property
    def episodes(self) -> Path:
        """All of its episodes."""
        return self.folder / EPISODES


def stage(workspace: Workspace) -> Stage:
    """Return the evaluate stage."""
    experiment, dataset = workspace.experiment, pretrain.checked_dataset(workspace)
    plans = [adapt.plan(workspace, name) for name in experiment.methods]
    workspace.finished(adapt.stage(workspace))
    settings = {
        "methods": {plan.method: plan.fingerprint for plan in plans},
        "evaluation": dataclasses.asdict(experiment.evaluation),
    }

    def work(run: StageRun) -> None:
        policies, evaluations = adapted(workspace, plans)
        play(run, policies, evaluations, workspace)
        summary = summarise(workspace, dataset, evaluations)
        write_artifacts(run, workspace, evaluations, summary)
        for evaluation in evaluations:
            log_method(run, workspace, evaluation, summary["methods"][evaluation.method])

    return Stage("evaluate", "evaluate", settings, work, f"python jobs/evaluate.py {experiment.name}")


def adapted(workspace: Workspace, plans: list[adapt.MethodPlan]) -> tuple[AdaptedPolicies, list[MethodEvaluation]]:
    """Read what the methods made; policies that share a backbone's weights share the object."""
    family = get_family(workspace.experiment.family)
    folders = {plan.cells[0].backbone_folder for plan in plans}
    backbones = {folder: load_backbone(folder, family, CPU) for folder in folders}
    protocol = dataclasses.asdict(workspace.experiment.evaluation)
    evaluations = []
    for plan in plans:
        backbone, _ = backbones[plan.cells[0].backbone_folder]
        fingerprint = fingerprint_of([plan.fingerprint, protocol])
        evaluations.append(
            MethodEvaluation(
                plan.method,
                fingerprint,
                workspace.folder / "evaluations" / f"{plan.method}-{fingerprint[:8]}",
                {cell.task: load_adaptation(cell.result, backbone) for cell in plan.cells},
            )
        )
    made: dict[str, dict[int, AdaptedPolicy]] = {
        each.method: {task: adaptation.policy for task, adaptation in each.adaptations.items()} for each in evaluations
    }
    # All backbones learn from the same data, so they share one normaliser.
    normaliser = next(iter(backbones.values()))[1]
    return AdaptedPolicies(normaliser, made), evaluations


def play(run: StageRun, policies: AdaptedPolicies, evaluations: list[MethodEvaluation], workspace: Workspace) -> None:
    """Run the blocks that have no result file yet and write the episodes of all; every finished block is kept."""
    experiment, protocol = workspace.experiment, workspace.experiment.evaluation
    family = get_family(experiment.family)
    blocks: dict[str, list[EvaluationBlock]] = {}
    for each in evaluations:
        requests = protocol.requests(family, [each.method], family.test_tasks)
        blocks[each.method] = evaluation_blocks(requests, protocol, policies)
    missing = [block for each in evaluations for block in blocks[each.method] if not each.blocks.has(block.name)]
    total = sum(len(of_method) for of_method in blocks.values())
    run.expect(total, total - len(missing))
    if missing:
        connect(experiment.cluster)
        results = {each.method: each.blocks for each in evaluations}
        pool = rollout_pool(family.name, experiment.cluster)
        for block, episodes in pool.run(missing, policies):
            results[block.method].write(block.name, episodes)
            run.advance()
        run.run.log_metrics({"cost/rollout_actor_memory_gib": pool.peak_memory_gib})
    for each in evaluations:
        each.blocks.join([block.name for block in blocks[each.method]], each.episodes)


@cache
def rollout_pool(family: str, cluster: ClusterConfig) -> RolloutPool:
    """Return the pool that all evaluations of this job share; its actors end with the job."""
    return RolloutPool(family, cluster.rollout_actors, cluster.gpus_per_actor)


def cost_of(evaluation: MethodEvaluation) -> dict[str, float]:
    """Return what a method cost: the seconds of all tasks, of all else the most that a task took."""
    costs: list[Cost] = [adaptation.cost for adaptation in evaluation.adaptations.values()]
    most = {
        name: max(getattr(cost, name) for cost in costs)
        for name in ("tunable_parameters", "gradient_steps", "environment_episodes", "memory_gib")
    }
    return most | {"seconds_adapt": sum(cost.seconds for cost in costs)}


def summarise(workspace: Workspace, dataset: Dataset, evaluations: list[MethodEvaluation]) -> dict[str, Any]:
    """Return the content of summary.json."""
    experiment = workspace.experiment
    family = get_family(experiment.family)
    compared_at = f"{experiment.evaluation.targets(family)[0]:g}"
    methods = {}
    for each in evaluations:
        targets = summarise_targets(pd.read_parquet(each.episodes), dataset.manifest.tasks, experiment.seed)
        methods[each.method] = (
            targets[compared_at]
            | cost_of(each)
            | {"summary": get_method(each.method).summary}
            | {"targets": {target: {key: of_target[key] for key in SHOWN} for target, of_target in targets.items()}}
        )
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
        "methods": methods,
    }


def write_artifacts(
    run: StageRun, workspace: Workspace, evaluations: list[MethodEvaluation], summary: dict[str, Any]
) -> None:
    """Write what the report is made from: the episodes and trajectory prompts of all methods, and the summary."""
    experts = expert_prompts(workspace)
    shown: dict[str, dict[int, Segments]] = {"expert": experts} | {
        each.method: {
            task: adaptation.policy.prompts
            for task, adaptation in each.adaptations.items()
            if isinstance(adaptation.policy.prompts, Segments)
        }
        for each in evaluations
    }
    rows = [
        {"method": method, "task": task, "prompt": number, "features": features}
        for method, by_task in shown.items()
        for task, prompts in by_task.items()
        for number, features in enumerate(PromptSpace.encode(prompts).numpy())
    ]
    pd.DataFrame(rows).to_parquet(run.folder / "prompts.parquet")
    (run.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    pd.concat([pd.read_parquet(each.episodes) for each in evaluations]).to_parquet(run.folder / EPISODES, index=False)
    for name in (EPISODES, "prompts.parquet", "summary.json"):
        run.run.log_artifact(run.folder / name)


def expert_prompts(workspace: Workspace) -> dict[int, Segments]:
    """Return the few-shot prompts of every test task."""
    experiment, family = workspace.experiment, get_family(workspace.experiment.family)
    backbone, normaliser = load_backbone(pretrain.backbone_folder(workspace), family, CPU)
    settings = pretrain.inputs_settings(experiment, experiment.evaluation)
    builder = InputsBuilder(pretrain.checked_dataset(workspace), backbone, normaliser, settings)
    return {task: builder.few_shot([task], settings.few_shot).pool.prompts for task in family.test_tasks}


def log_method(run: StageRun, workspace: Workspace, evaluation: MethodEvaluation, result: dict[str, Any]) -> None:
    """Log a method as a run of its own, with the same keys for every method."""
    experiment, method = workspace.experiment, get_method(evaluation.method)
    tags = {
        STAGE_TAG: "method",
        "promptdiffuser.method": method.name,
        "promptdiffuser.family": experiment.family,
        "promptdiffuser.seed": str(experiment.seed),
    }
    log = run.tracker.run(method.name, evaluation.fingerprint, run.run, tags)
    log.log_params(
        {
            "method": dataclasses.asdict(method) | {"adapt": method.adapt.__module__},
            "seed": experiment.seed,
            "family": experiment.family,
            "adaptation": dataclasses.asdict(experiment.adaptation),
            "evaluation": dataclasses.asdict(experiment.evaluation),
        }
    )
    success = {"test/success": result["success"]} if get_family(experiment.family).has_success else {}
    log.log_metrics(
        {
            "test/return": result["mean"],
            "test/return_low": result["ci_low"],
            "test/return_high": result["ci_high"],
            "test/normalised": result["normalised"],
            "test/diverged": result["diverged"],
            "time/adapt_s": result["seconds_adapt"],
            "time/evaluate_s": result["seconds"],
            "cost/tunable_parameters": result["tunable_parameters"],
            "cost/gradient_steps": result["gradient_steps"],
            "cost/environment_episodes": result["environment_episodes"],
            "cost/memory_gib": result["memory_gib"],
        }
        | success
        | {f"test/task-{task}": mean for task, mean in result["per_task"].items()}
    )
    log.log_artifact(evaluation.episodes)
    log.finish()


def main(options: JobOptions) -> None:
    """Run the stage."""
    with Workspace(options) as workspace:
        print(workspace.run(stage(workspace)) / "summary.json")


if __name__ == "__main__":
    run_job(main, __doc__ or "")
