"""Episodes of all methods on a pool of rollout actors; every finished block of them is kept."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import pandas as pd

from promptdiffuser.data.windows import Segments
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.evaluation.scores import reference_scores, summarise_targets
from promptdiffuser.evaluation.summary import SCHEMA_VERSION, EvaluationSummary, MethodSummary, TargetSummary
from promptdiffuser.experiment import Experiment
from promptdiffuser.keys import fingerprint
from promptdiffuser.methods import get_method
from promptdiffuser.methods.adaptation import Adaptation, Cost
from promptdiffuser.methods.folders import load_adaptation
from promptdiffuser.methods.inputs import InputsBuilder
from promptdiffuser.pipeline.session import Session, StageRun
from promptdiffuser.pipeline.stages.adapt import MethodPlan
from promptdiffuser.pipeline.stages.evaluate import ARTIFACTS, EPISODES, PROMPTS, SUMMARY, part
from promptdiffuser.pipeline.stages.pretrain import inputs_settings
from promptdiffuser.pipeline.work.adapt import cells_of, content_of
from promptdiffuser.rollout.blocks import BlockOfMany, EvaluationBlock, evaluation_blocks
from promptdiffuser.rollout.policies import AdaptedPolicies, AdaptedPolicy
from promptdiffuser.rollout.results import BlockResults
from promptdiffuser.tasks import get_family
from promptdiffuser.tracking.names import FAMILY_TAG, FOLDER_TAG, METHOD_TAG, SEED_TAG, STAGE_TAG, score_metrics
from promptdiffuser.tracking.provenance import typed_command

SHOWN = tuple(TargetSummary.__annotations__)


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


def evaluate(run: StageRun, experiment: Experiment, plans: list[MethodPlan]) -> None:
    """Play what is missing, summarise, and log every method as a run of its own."""
    built = build(run.session, experiment, plans)
    play(run, [built])
    summary = summarise(run, experiment, built.evaluations)
    write_artifacts(run, experiment, plans, built.evaluations, summary)
    for plan, evaluation in zip(plans, built.evaluations, strict=True):
        log_method(run, experiment, evaluation, plan.part.folder, summary["methods"][evaluation.method])


@dataclass(frozen=True)
class EvaluationPlan:
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


def build(session: Session, experiment: Experiment, plans: list[MethodPlan]) -> EvaluationPlan:
    """Read what the methods made; policies that share a backbone's weights share the object."""
    evaluations, normalisers = [], []
    for plan in plans:
        backbone, normaliser = session.backbone(plan.inputs["backbone"], experiment.family)
        cells = cells_of(session, plan)
        adaptations = {cell.task: load_adaptation(cell.result, backbone, plan.method) for cell in cells}
        content, of = content_of(session, plan), part(plan)
        folder = session.folder / of.folder
        session.store.claim(folder, {"policies": content})
        evaluations.append(MethodEvaluation(plan.method.name, fingerprint([of.key, content]), folder, adaptations))
        normalisers.append(normaliser)
    made: dict[str, dict[int, AdaptedPolicy]] = {
        each.method: {task: adaptation.policy for task, adaptation in each.adaptations.items()} for each in evaluations
    }
    # All backbones learn from the same data, so they share one normaliser.
    return EvaluationPlan(experiment, AdaptedPolicies(normalisers[0], made), evaluations)


def play(run: StageRun, plans: Sequence[EvaluationPlan]) -> None:
    """Run the blocks that have no result file yet and write the episodes of all; every finished block is kept.

    The experiments are of one family and cluster.
    """
    missing = [BlockOfMany(number, block) for number, each in enumerate(plans) for block in each.missing()]
    total = sum(len(each.blocks) for each in plans)
    run.expect(total, total - len(missing))
    if missing:
        family, cluster = plans[0].experiment.family, plans[0].experiment.cluster
        connect(cluster)
        with RolloutPool(family, cluster.rollout_actors, cluster.gpus_per_actor, cluster.block_limit_s) as pool:
            for found, episodes in pool.run(missing, [each.policies for each in plans]):
                plans[found.evaluation].results[found.block.method].write(found.block.name, episodes)
                run.advance()
        run.log.log_metrics({"cost/rollout_actor_memory_gib": pool.peak_memory_gib})
    for each in plans:
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


def summarise(run: StageRun, experiment: Experiment, evaluations: list[MethodEvaluation]) -> EvaluationSummary:
    """Return the content of summary.json."""
    dataset = run.dataset(experiment)
    family = get_family(experiment.family)
    compared_at = f"{experiment.evaluation.targets(family)[0]:g}"
    methods = dict[str, MethodSummary]()
    for each in evaluations:
        targets = summarise_targets(pd.read_parquet(each.episodes), dataset.manifest.tasks)
        shown = {target: {key: of_target[key] for key in SHOWN} for target, of_target in targets.items()}
        found = targets[compared_at] | cost_of(each)
        found |= {"summary": get_method(each.method).summary, "targets": shown}
        methods[each.method] = cast(MethodSummary, found)
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": experiment.name,
        "family": family.name,
        "test_tasks": list(family.test_tasks),
        "tasks": {str(task): family.label(task) for task in family.test_tasks},
        "caution": family.caution,
        "has_success": family.has_success,
        "dataset_digest": dataset.manifest.digest,
        "protocol": dataclasses.asdict(experiment.evaluation),
        "command": typed_command(),
        "seed": experiment.seed,
        "references": reference_scores(family),
        "methods": methods,
    }


def write_artifacts(
    run: StageRun,
    experiment: Experiment,
    plans: list[MethodPlan],
    evaluations: list[MethodEvaluation],
    summary: EvaluationSummary,
) -> None:
    """Write what the report is made from: the episodes and trajectory prompts of all methods, and the summary."""
    experts = expert_prompts(run, experiment, plans[0])
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
    pd.DataFrame(rows).to_parquet(run.folder / PROMPTS)
    (run.folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    pd.concat([pd.read_parquet(each.episodes) for each in evaluations]).to_parquet(run.folder / EPISODES, index=False)
    for name in ARTIFACTS:
        run.log.log_artifact(run.folder / name)


def expert_prompts(run: StageRun, experiment: Experiment, plan: MethodPlan) -> dict[int, Segments]:
    """Return the few-shot prompts of every test task."""
    family = get_family(experiment.family)
    backbone, normaliser = run.session.backbone(plan.inputs["backbone"], family.name)
    settings = inputs_settings(experiment, experiment.evaluation)
    builder = InputsBuilder(run.dataset(experiment), backbone, normaliser, settings)
    return {task: builder.few_shot([task], settings.few_shot).pool.prompts for task in family.test_tasks}


def log_method(
    run: StageRun, experiment: Experiment, evaluation: MethodEvaluation, adapted: Path, result: MethodSummary
) -> None:
    """Log a method as a run of its own, with the same keys for every method."""
    method = get_method(evaluation.method)
    tags = {
        STAGE_TAG: "method",
        METHOD_TAG: method.name,
        FOLDER_TAG: str(run.session.folder / adapted),
        FAMILY_TAG: experiment.family,
        SEED_TAG: str(experiment.seed),
    }
    log = run.tracker.run(method.name, evaluation.fingerprint, run.log, tags)
    log.log_params(
        {
            "method": dataclasses.asdict(method) | {"adapt": method.adapt.__module__},
            "seed": experiment.seed,
            "family": experiment.family,
            "adaptation": dataclasses.asdict(experiment.adaptation),
            "evaluation": dataclasses.asdict(experiment.evaluation),
        }
    )
    scores: dict[str, float | None] = {f"task-{task}": mean for task, mean in result["per_task"].items()}
    scores |= {"mean": result["mean"], "ci_low": result["ci_low"], "ci_high": result["ci_high"]}
    scores |= {"normalised": result["normalised"], "diverged": result["diverged"], "seconds": result["seconds"]}
    success = {"test/success": result["success"]} if get_family(experiment.family).has_success else {}
    log.log_metrics(
        score_metrics("test", scores)
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
