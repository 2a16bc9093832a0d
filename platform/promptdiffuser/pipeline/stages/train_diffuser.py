"""The diffusers of an experiment, trained on the training tasks.

Where one of them learns from tuned prompts, these are tuned first. Where `diffuser.denoising_steps` is set, diffusers
share a training by the denoising loss only, and the guided one goes on from it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptdiffuser.assembly import diffuser_training
from promptdiffuser.experiment import Experiment
from promptdiffuser.keys import deciding, fingerprint
from promptdiffuser.methods import METHODS
from promptdiffuser.methods.diffusers import DIFFUSERS
from promptdiffuser.pipeline.graph import Given, Stage
from promptdiffuser.pipeline.stages.pretrain import (
    MODEL,
    Backbone,
    rounds_settings,
    tasks_taken,
    training_device,
    training_progress,
    validation_settings,
    workers,
)
from promptdiffuser.tasks import get_family
from promptdiffuser.tracking.names import METHOD_TAG
from promptdiffuser.training.checkpoint import read_manifest
from promptdiffuser.training.guidance import GuidanceConfig
from promptdiffuser.training.precision import resolve_precisions
from promptdiffuser.training.trainings import DiffuserTraining

if TYPE_CHECKING:
    from promptdiffuser.pipeline.session import StageRun

VERSION = 1
OPTIMISED = "optimised-prompts"


@dataclass(frozen=True)
class DiffuserStage:
    """The stage of a diffuser's training, and the training without its data and models."""

    stage: Stage
    experiment: Experiment
    training: DiffuserTraining


def optimised_prompts(experiment: Experiment, dataset: Stage | Given, backbone: Backbone) -> Stage:
    """Return the stage that tunes the prompts of the training tasks through the frozen backbone."""
    config, tasks = experiment.diffuser.optimised_prompts, get_family(experiment.family).train_tasks
    settings = {"quality": experiment.quality, "seed": experiment.seed, "config": deciding(config)}

    def work(run: "StageRun") -> None:
        from promptdiffuser.pipeline.work.train_diffuser import optimise

        optimise(run, experiment)

    return Stage(
        OPTIMISED,
        "optimise-prompts",
        _command(experiment),
        resolve_precisions(settings, training_device(experiment)),
        work,
        VERSION,
        {"dataset": dataset, "backbone": backbone.node},
        checkpoints=tuple(Path(f"task-{task}") for task in tasks),
        takes=tasks_taken(experiment),
        progress=lambda root, folder: f"{len(list(folder.glob('task-*/manifest.json')))} of {len(tasks)} tasks",
    )


def denoising(
    experiment: Experiment,
    dataset: Stage | Given,
    backbone: Backbone,
    diffuser: str,
    optimised: Stage | None,
    is_made_with_others: bool = False,
) -> DiffuserStage:
    """Return the training by the denoising loss only that a diffuser's multi-task training goes on from."""
    config = experiment.diffuser
    # Without guidance its settings do not matter, so diffusers with any guidance share the training.
    training = dataclasses.replace(
        diffuser_training(experiment, diffuser, backbone.config),
        stage="denoising",
        optimisation=dataclasses.replace(config.multi_task, steps=config.denoising_steps, snapshot_every=0, use="last"),
        guidance=GuidanceConfig(weight=0.0),
        guidance_start=0,
    )

    def work(run: "StageRun") -> None:
        from promptdiffuser.pipeline.work.train_diffuser import train

        train(run, experiment, training, is_made_with_others)

    inputs = {"dataset": dataset, "backbone": backbone.node} | _optimised(diffuser, optimised)
    name = f"denoising-{'context' if DIFFUSERS[diffuser].sees_task_context else 'y'}"
    return DiffuserStage(_stage(name, experiment, training, inputs, work), experiment, training)


def multi_task(
    experiment: Experiment,
    dataset: Stage | Given,
    backbone: Backbone,
    diffuser: str,
    start: Stage | None,
    optimised: Stage | None,
    is_made_with_others: bool = False,
) -> DiffuserStage:
    """Return the training of a diffuser on the training tasks.

    Args:
        experiment: The settings.
        dataset: What it learns from.
        backbone: What it is trained through.
        diffuser: Its name in `DIFFUSERS`.
        start: The training by the denoising loss that it goes on from, if there is one.
        optimised: The tuned prompts, which it reads if it learns them.
        is_made_with_others: Whether an earlier stage makes the models of many trainings side by side.
    """
    training = diffuser_training(experiment, diffuser, backbone.config)
    # Snapshots are scored by what they generate without training on a target task, which all its methods share.
    scored_by = next(name for name, method in METHODS.items() if method.diffuser == diffuser)

    def work(run: "StageRun") -> None:
        from promptdiffuser.pipeline.work.train_diffuser import train_and_look

        train_and_look(run, experiment, training, diffuser, scored_by, is_made_with_others)

    inputs = {"dataset": dataset, "backbone": backbone.node} | _optimised(diffuser, optimised)
    if start is not None:
        inputs["start"] = start
    stage = _stage(f"diffuser-{diffuser}", experiment, training, inputs, work)
    validation = validation_settings(experiment, training.optimisation)
    stage = dataclasses.replace(
        stage, settings={**stage.settings, "validation": validation}, tags={METHOD_TAG: diffuser}
    )
    return DiffuserStage(stage, experiment, training)


def _optimised(diffuser: str, optimised: Stage | None) -> dict[str, Stage | Given]:
    return {OPTIMISED: optimised} if DIFFUSERS[diffuser].learns_optimised_prompts and optimised is not None else {}


def _stage(
    name: str, experiment: Experiment, training: DiffuserTraining, inputs: Mapping[str, Stage | Given], work: Any
) -> Stage:
    settings = {"quality": experiment.quality, "rounds": rounds_settings(experiment)} | deciding(training)
    return Stage(
        name,
        "train-diffuser",
        _command(experiment),
        resolve_precisions(settings, training_device(experiment)),
        work,
        VERSION,
        inputs,
        checkpoints=(MODEL,),
        product=MODEL,
        takes=workers(experiment),
        content_of=lambda folder: fingerprint(read_manifest(folder / MODEL)),
        progress=training_progress,
    )


def _command(experiment: Experiment) -> str:
    return f"promptdiffuser stage train-diffuser {experiment.name}"
