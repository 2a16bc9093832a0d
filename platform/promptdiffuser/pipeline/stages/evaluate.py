"""Evaluate every method of an experiment on the unseen test tasks, on a pool of rollout actors.

    python jobs/evaluate.py quickstart --evaluation.prompts 32

A method's episodes lie in a folder named by what they are, so a longer list of methods plays the new ones alone.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import Segments
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.evaluation.scores import reference_scores, summarise_targets
from promptdiffuser.experiment import Experiment
from promptdiffuser.methods import get_method
from promptdiffuser.methods.adaptation import Adaptation, Cost
from promptdiffuser.methods.folders import load_adaptation
from promptdiffuser.methods.inputs import InputsBuilder
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.pipeline.options import JobOptions
from promptdiffuser.pipeline.session import Stage, StageRun, Workspace, fingerprint_of
from promptdiffuser.pipeline.stages import adapt, pretrain
from promptdiffuser.rollout.blocks import BlockOfMany, EvaluationBlock, evaluation_blocks
from promptdiffuser.rollout.policies import AdaptedPolicies, AdaptedPolicy
from promptdiffuser.rollout.results import BlockResults
from promptdiffuser.tasks import get_family
from promptdiffuser.tracking.names import FAMILY_TAG, METHOD_TAG, SEED_TAG, STAGE_TAG, score_metrics
from promptdiffuser.training.model_folders import load_backbone
from promptdiffuser.training.precision import resolve_precisions

CPU = torch.device("cpu")
EPISODES = "episodes.parquet"
ARTIFACTS = (EPISODES, "prompts.parquet", "summary.json")
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
        "methods": {plan.method: plan.content for plan in plans},
        "evaluation": protocol_of(experiment),
        "references": reference_scores(get_family(experiment.family)),
    }

    def work(run: StageRun) -> None:
        prepared = prepare(workspace)
        play(run, [prepared])
        evaluations = prepared.evaluations
        summary = summarise(workspace, dataset, evaluations)
        write_artifacts(run, workspace, evaluations, summary)
        for evaluation in evaluations:
            log_method(run, workspace, evaluation, summary["methods"][evaluation.method])

    return Stage(
        "evaluate",
        "evaluate",
        settings,
        work,
        f"python jobs/evaluate.py {experiment.name}",
        outputs=tuple(Path(name) for name in ARTIFACTS),
        makes=tuple(folder_of(workspace, plan) for plan in plans),
    )


def protocol_of(experiment: Experiment) -> dict[str, Any]:
    """Return how episodes are played, in the number format that the rollout actors use."""
    device = torch.device("cuda" if experiment.cluster.gpus_per_actor else "cpu")
    protocol: dict[str, Any] = resolve_precisions(dataclasses.asdict(experiment.evaluation), device)
    return protocol


def fingerprint_of_episodes(workspace: Workspace, plan: adapt.MethodPlan) -> str:
    """Identify the episodes of a method's policies."""
    return fingerprint_of([plan.content, protocol_of(workspace.experiment)])


def folder_of(workspace: Workspace, plan: adapt.MethodPlan) -> Path:
    """Return where the episodes of a method's policies are written."""
    return workspace.folder / "evaluations" / f"{plan.method}-{fingerprint_of_episodes(workspace, plan)[:8]}"


@dataclass(frozen=True)
class Prepared:
    """An experiment's evaluations, ready to be played."""

    experiment: Experiment
    policies: AdaptedPolicies
    evaluations: list[MethodEvaluation]

    @cached_property
    def blocks(self) -> list[EvaluationBlock]:
        """The blocks of all methods."""
        protocol, family = self.experiment.evaluation, get_family(self.experiment.family)
        return [
            block
            for each in self.evaluations
            for block in evaluation_blocks(
                protocol.requests(family, [each.method], family.test_tasks), protocol, self.policies
            )
        ]

    @cached_property
    def results(self) -> dict[str, BlockResults]:
        """Where the finished blocks of each method are."""
        return {each.method: each.blocks for each in self.evaluations}

    def missing(self) -> list[EvaluationBlock]:
        """Return the blocks without a result."""
        return [block for block in self.blocks if not self.results[block.method].has(block.name)]


def prepare(workspace: Workspace) -> Prepared:
    """Read what the methods made; policies that share a backbone's weights share the object."""
    experiment = workspace.experiment
    family = get_family(experiment.family)
    evaluations, normalisers = [], []
    for plan in (adapt.plan(workspace, name) for name in experiment.methods):
        backbone, normaliser = frozen_backbone(plan.cells[0].backbone_folder, family.name)
        adaptations = {cell.task: load_adaptation(cell.result, backbone) for cell in plan.cells}
        evaluations.append(
            MethodEvaluation(
                plan.method, fingerprint_of_episodes(workspace, plan), folder_of(workspace, plan), adaptations
            )
        )
        normalisers.append(normaliser)
    made: dict[str, dict[int, AdaptedPolicy]] = {
        each.method: {task: adaptation.policy for task, adaptation in each.adaptations.items()} for each in evaluations
    }
    # All backbones learn from the same data, so they share one normaliser.
    return Prepared(experiment, AdaptedPolicies(normalisers[0], made), evaluations)


@cache
def frozen_backbone(folder: Path, family: str) -> tuple[PromptDT, Normaliser]:
    """Read a backbone once, so that all policies that leave it as it is share one."""
    return load_backbone(folder, get_family(family), CPU)


def play(run: StageRun, prepared: Sequence[Prepared]) -> None:
    """Run the blocks that have no result file yet and write the episodes of all; every finished block is kept.

    The experiments are of one family and cluster.
    """
    missing = [BlockOfMany(number, block) for number, each in enumerate(prepared) for block in each.missing()]
    total = sum(len(each.blocks) for each in prepared)
    run.expect(total, total - len(missing))
    if missing:
        family, cluster = prepared[0].experiment.family, prepared[0].experiment.cluster
        connect(cluster)
        with RolloutPool(family, cluster.rollout_actors, cluster.gpus_per_actor, cluster.block_limit_s) as pool:
            for found, episodes in pool.run(missing, [each.policies for each in prepared]):
                prepared[found.evaluation].results[found.block.method].write(found.block.name, episodes)
                run.advance()
        run.run.log_metrics({"cost/rollout_actor_memory_gib": pool.peak_memory_gib})
    for each in prepared:
        for evaluation in each.evaluations:
            names = [block.name for block in each.blocks if block.method == evaluation.method]
            evaluation.blocks.join(names, evaluation.episodes)


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
        targets = summarise_targets(pd.read_parquet(each.episodes), dataset.manifest.tasks)
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
        "references": reference_scores(family),
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
    for name in ARTIFACTS:
        run.run.log_artifact(run.folder / name)


def expert_prompts(workspace: Workspace) -> dict[int, Segments]:
    """Return the few-shot prompts of every test task."""
    experiment, family = workspace.experiment, get_family(workspace.experiment.family)
    backbone, normaliser = frozen_backbone(pretrain.backbone_folder(workspace).resolve(), family.name)
    settings = pretrain.inputs_settings(experiment, experiment.evaluation)
    builder = InputsBuilder(pretrain.checked_dataset(workspace), backbone, normaliser, settings)
    return {task: builder.few_shot([task], settings.few_shot).pool.prompts for task in family.test_tasks}


def log_method(run: StageRun, workspace: Workspace, evaluation: MethodEvaluation, result: dict[str, Any]) -> None:
    """Log a method as a run of its own, with the same keys for every method."""
    experiment, method = workspace.experiment, get_method(evaluation.method)
    tags = {
        STAGE_TAG: "method",
        METHOD_TAG: method.name,
        FAMILY_TAG: experiment.family,
        SEED_TAG: str(experiment.seed),
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
        score_metrics("test", result | {f"task-{task}": mean for task, mean in result["per_task"].items()})
        | {
            "time/adapt_s": result["seconds_adapt"],
            "cost/tunable_parameters": result["tunable_parameters"],
            "cost/gradient_steps": result["gradient_steps"],
            "cost/environment_episodes": result["environment_episodes"],
            "cost/memory_gib": result["memory_gib"],
        }
        | success
    )
    log.log_artifact(evaluation.episodes)
    log.finish()


def main(options: JobOptions) -> None:
    """Run the stage."""
    with Workspace(options) as workspace:
        workspace.check_rerun(["evaluate"])
        print(workspace.run(stage(workspace)) / "summary.json")
