"""Every method adapts the frozen backbone to every test task.

A method's adaptations are a part of the stage with a key of their own: a longer list of methods, or another setting of
one of them, adapts by the new ones only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptdiffuser.assembly import few_shot_training
from promptdiffuser.experiment import Experiment
from promptdiffuser.keys import deciding, fingerprint
from promptdiffuser.methods import get_method
from promptdiffuser.methods.adaptation import Method
from promptdiffuser.methods.config import settings_of
from promptdiffuser.pipeline.graph import Given, Part, Stage
from promptdiffuser.pipeline.stages.pretrain import Backbone, inputs_settings, tasks_taken, training_device
from promptdiffuser.pipeline.stages.train_diffuser import DiffuserStage
from promptdiffuser.tasks import get_family
from promptdiffuser.training.precision import resolve_precisions
from promptdiffuser.training.trainings import DiffuserTraining

if TYPE_CHECKING:
    from promptdiffuser.pipeline.session import StageRun

VERSION = 1
POLICY = "policy"


@dataclass(frozen=True)
class MethodPlan:
    """A method of an experiment, and what its adaptations read."""

    method: Method
    experiment: Experiment
    part: Part
    inputs: Mapping[str, Stage | Given]
    """dataset, backbone and, for methods that have one, diffuser."""
    few_shot_training: DiffuserTraining | None
    """The diffuser's few-shot updates, without task, data and models."""


def plan(
    experiment: Experiment,
    dataset: Stage | Given,
    backbones: Mapping[str, Backbone],
    diffusers: Mapping[str, DiffuserStage],
    name: str,
) -> MethodPlan:
    """Return a method's adaptations to the test tasks."""
    method, tasks = get_method(name), get_family(experiment.family).test_tasks
    seen = inputs_settings(experiment, experiment.evaluation)
    settings: dict[str, Any] = {
        "quality": seen.quality,
        "few_shot": deciding(seen.few_shot),
        "context_transitions": seen.context_transitions,
        "num_prompts": seen.num_prompts,
        "target_return": seen.target_return,
        "seed": seen.seed,
        "tasks": tasks,
        "method": deciding(settings_of(experiment.adaptation, method)),
    }
    inputs: dict[str, Stage | Given] = {"dataset": dataset, "backbone": backbones[method.backbone].node}
    training = None
    if method.diffuser is not None:
        inputs["diffuser"] = diffusers[method.diffuser].stage
        if method.few_shot_updates:
            training = few_shot_training(diffusers[method.diffuser].training, experiment, None, task=tasks[0])
            settings["few_shot_training"] = deciding(training)
    settings = resolve_precisions(settings, training_device(experiment))
    key = fingerprint([name, VERSION, settings, {input_name: node.key for input_name, node in inputs.items()}])
    checkpoints = tuple(Path(f"task-{task}") / POLICY for task in tasks)
    part = Part(name, key, Path("adaptations") / f"{name}-{key[:8]}", checkpoints)
    return MethodPlan(method, experiment, part, inputs, training)


def stage(experiment: Experiment, plans: list[MethodPlan], looks_inside: bool = True) -> Stage:
    """Return the adapt stage.

    Args:
        experiment: The experiment.
        plans: Its methods.
        looks_inside: Whether the prompts of its diffusers are examined.
    """

    def work(run: "StageRun") -> None:
        from promptdiffuser.pipeline.work.adapt import adapt

        adapt(run, experiment, plans, looks_inside)

    inputs = {"dataset": plans[0].inputs["dataset"]}
    for each in plans:
        inputs |= {node.name: node for node in each.inputs.values() if node is not inputs["dataset"]}
    return Stage(
        "adapt",
        "adapt",
        f"promptdiffuser stage adapt {experiment.name}",
        {"methods": [each.method.name for each in plans]},
        work,
        VERSION,
        inputs,
        parts=tuple(each.part for each in plans),
        takes=tasks_taken(experiment),
        progress=lambda root, folder: _progress(root, plans),
    )


def _progress(root: Path, plans: list[MethodPlan]) -> str:
    policies = [root / each.part.folder / name for each in plans for name in each.part.checkpoints]
    return f"{sum((policy / 'manifest.json').exists() for policy in policies)} of {len(policies)} adaptations"
