"""Train the diffusers of an experiment on the training tasks, with Ray Train.

Where one of them learns from tuned prompts, these are tuned first, a Ray task a training task.

python jobs/train_diffuser.py quickstart --guidance.weight 2
"""

import dataclasses
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from promptdiffuser.assembly import diffuser_training, few_shot_training
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.optimised_prompts import optimise_prompts
from promptdiffuser.distributed.training import TrainJob
from promptdiffuser.errors import UserError
from promptdiffuser.methods import METHODS, get_method
from promptdiffuser.methods.diffusers import DIFFUSERS
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.pipeline.options import JobOptions
from promptdiffuser.pipeline.session import Stage, StageRun, Workspace
from promptdiffuser.pipeline.stages import pretrain
from promptdiffuser.pipeline.stages.diagnostics import look_inside
from promptdiffuser.tasks import get_family
from promptdiffuser.tracking.names import METHOD_TAG
from promptdiffuser.training.checkpoint import is_whole
from promptdiffuser.training.guidance import GuidanceConfig
from promptdiffuser.training.model_folders import load_backbone
from promptdiffuser.training.optimised_prompts import PromptOptimisation
from promptdiffuser.training.precision import resolve_precisions
from promptdiffuser.training.trainings import DiffuserTraining

OPTIMISED = "optimised-prompts"


def diffusers(workspace: Workspace) -> list[str]:
    """Return the diffusers that the experiment's methods need, each once."""
    needed = (get_method(name).diffuser for name in workspace.experiment.methods)
    return list(dict.fromkeys(diffuser for diffuser in needed if diffuser is not None))


def denoising_training(workspace: Workspace, diffuser: str) -> DiffuserTraining:
    """Return the training by the denoising loss alone that a diffuser's multi-task training goes on from."""
    config = workspace.experiment.diffuser
    # Of no guidance, nothing but its absence counts, so that diffusers with any guidance share the training.
    optimisation = dataclasses.replace(config.multi_task, steps=config.denoising_steps, snapshot_every=0, use="last")
    return dataclasses.replace(
        training_of(workspace, diffuser),
        stage="denoising",
        optimisation=optimisation,
        guidance=GuidanceConfig(weight=0.0),
        guidance_start=0,
    )


def denoising_stage(workspace: Workspace, diffuser: str) -> Stage:
    """Return the stage of that training."""
    experiment, dataset = workspace.experiment, pretrain.checked_dataset(workspace)
    training = denoising_training(workspace, diffuser)

    def work(run: StageRun) -> None:
        if not is_trained_apart(workspace, run):
            pretrain.train_with_ray(run, training, dataset, experiment)

    return Stage(
        denoising_name(diffuser),
        "train-diffuser",
        resolve_precisions(settings_of(training), pretrain.training_device(experiment)),
        work,
        f"python jobs/train_diffuser.py {experiment.name}",
        checkpoints=(pretrain.MODEL,),
    )


def denoising_name(diffuser: str) -> str:
    """Return the name of that stage, which diffusers with the same inputs share."""
    return f"denoising-{'context' if DIFFUSERS[diffuser].sees_task_context else 'y'}"


def multi_task_training(workspace: Workspace, diffuser: str) -> DiffuserTraining:
    """Return a diffuser's training on the training tasks."""
    training = training_of(workspace, diffuser)
    if not workspace.experiment.diffuser.denoising_steps:
        return training
    start = workspace.finished(denoising_stage(workspace, diffuser)) / "model"
    return dataclasses.replace(training, start_from=start)


def stages(workspace: Workspace) -> Iterator[Stage]:
    """Yield the stages that train the experiment's diffusers; each may need those before it to be finished."""
    yield from preparations(workspace)
    for diffuser in diffusers(workspace):
        if workspace.experiment.diffuser.denoising_steps:
            yield denoising_stage(workspace, diffuser)
        yield stage(workspace, diffuser)


def names(workspace: Workspace) -> list[str]:
    """Return the names of those stages."""
    wanted = diffusers(workspace)
    optimised = [OPTIMISED] if any(DIFFUSERS[diffuser].learns_optimised_prompts for diffuser in wanted) else []
    denoising = map(denoising_name, wanted) if workspace.experiment.diffuser.denoising_steps else []
    return [*optimised, *dict.fromkeys(denoising), *(f"diffuser-{diffuser}" for diffuser in wanted)]


def preparations(workspace: Workspace) -> list[Stage]:
    """Return the stages before any diffuser is trained."""
    learn_optimised = (DIFFUSERS[diffuser].learns_optimised_prompts for diffuser in diffusers(workspace))
    return [optimised_prompts_stage(workspace)] if any(learn_optimised) else []


def optimised_prompts_stage(workspace: Workspace) -> Stage:
    """Return the stage that tunes the prompts of the training tasks through the frozen backbone.

    As the backbone, the seeds of a benchmark share them.
    """
    if workspace.base is not None:
        return optimised_prompts_stage(workspace.base)
    experiment, dataset = workspace.experiment, pretrain.checked_dataset(workspace)
    backbone_folder, config = pretrain.backbone_folder(workspace).resolve(), experiment.diffuser.optimised_prompts
    settings = {
        "dataset": dataset.manifest.digest,
        "quality": experiment.quality,
        "backbone": (backbone_folder / "manifest.json").read_text(),
        "seed": experiment.seed,
        "config": dataclasses.asdict(config),
    }

    def work(run: StageRun) -> None:
        pieces = [
            PromptOptimisation(task, run.folder, dataset, experiment.quality, backbone_folder, config, experiment.seed)
            for task in dataset.family.train_tasks
        ]
        missing = [piece for piece in pieces if not piece.is_done]
        run.expect(len(pieces), len(pieces) - len(missing))
        if missing:
            connect(experiment.cluster)
            for _ in optimise_prompts(missing, num_gpus=experiment.cluster.gpus_per_task):
                run.advance()

    command = f"python jobs/train_diffuser.py {experiment.name}"
    checkpoints = tuple(Path(f"task-{task}") for task in dataset.family.train_tasks)
    return Stage(OPTIMISED, "optimise-prompts", settings, work, command, checkpoints=checkpoints)


def stage(workspace: Workspace, diffuser: str) -> Stage:
    """Return the stage that trains a diffuser on the training tasks."""
    experiment = workspace.experiment
    dataset = pretrain.checked_dataset(workspace)
    training = multi_task_training(workspace, diffuser)
    # Snapshots are scored by what they generate without training on a target task, which all its methods share.
    scored_by = next(name for name, method in METHODS.items() if method.diffuser == diffuser)

    def work(run: StageRun) -> None:
        if is_trained_apart(workspace, run):
            return
        validation = pretrain.validation_of(dataset, experiment, scored_by, training.backbone_folder)
        pretrain.train_with_ray(run, training, dataset, experiment, validation)
        run.run.log_model(f"{experiment.name}-{diffuser}", run.folder / "model", "train-diffuser")
        look_inside(run, workspace, {diffuser: dict.fromkeys(dataset.family.validation_tasks, run.folder / "model")})

    return Stage(
        f"diffuser-{diffuser}",
        "train-diffuser",
        resolve_precisions(settings_of(training), pretrain.training_device(experiment))
        | {"validation": dataclasses.asdict(experiment.validation)},
        work,
        f"python jobs/train_diffuser.py {experiment.name}",
        {METHOD_TAG: diffuser},
        checkpoints=(pretrain.MODEL,),
    )


def job_apart(workspace: Workspace, this: Stage, training: DiffuserTraining) -> TrainJob | None:
    """Return a stage's training as one that needs no Ray Train, for many side by side; None where it is done."""
    experiment, dataset = workspace.experiment, pretrain.checked_dataset(workspace)
    folder = workspace.folder_of(this)
    if is_whole(folder / "model"):
        return None
    if training.optimisation.snapshot_every:
        raise UserError(
            "diffuser.multi_task.snapshot_every must be 0 where many diffusers are trained side by side; their "
            "snapshots would have to be scored in turn"
        )
    return TrainJob(training, dataset, dataset.family.train_tasks, experiment.quality, folder, workspace.open(this))


def is_trained_apart(workspace: Workspace, run: StageRun) -> bool:
    """Tell whether a benchmark has made the stage's model by `job_apart`.

    Elsewhere a model does not say that its stage is over: its snapshots may have to be scored, or it to be looked into.
    """
    return workspace.base is not None and is_whole(run.folder / "model")


def few_shot_of(workspace: Workspace, diffuser: str, task: int) -> DiffuserTraining:
    """Return a diffuser's training on the few-shot episodes of a target task."""
    start_from = workspace.finished(stage(workspace, diffuser)) / "model"
    return few_shot_training(training_of(workspace, diffuser), workspace.experiment, start_from, task)


def training_of(workspace: Workspace, diffuser: str) -> DiffuserTraining:
    """Return the multi-task training of a diffuser with the experiment's settings, from new weights."""
    experiment, dataset = workspace.experiment, pretrain.checked_dataset(workspace)
    folder = pretrain.backbone_folder(workspace).resolve()
    training = diffuser_training(experiment, dataset, diffuser, folder, _config_of(folder, experiment.family))
    if not DIFFUSERS[diffuser].learns_optimised_prompts:
        return training
    return dataclasses.replace(training, optimised_prompts=workspace.finished(optimised_prompts_stage(workspace)))


@cache
def _config_of(folder: Path, family: str) -> BackboneConfig:
    backbone, _ = load_backbone(folder, get_family(family), torch.device("cpu"))
    return backbone.config


def settings_of(training: DiffuserTraining) -> dict[str, object]:
    """Name the models a training starts from by their content, so that a moved folder is the same input."""
    settings = dataclasses.asdict(training) | {
        "backbone_folder": (training.backbone_folder / "manifest.json").read_text(),
        # Which episodes lie in which file is part of the dataset's digest.
        "rounds": training.rounds.settings,
    }
    if training.start_from is not None:
        settings["start_from"] = (training.start_from / "manifest.json").read_text()
    if training.optimised_prompts is not None:
        manifests = sorted(training.optimised_prompts.glob("task-*/manifest.json"))
        settings["optimised_prompts"] = [manifest.read_text() for manifest in manifests]
    return settings


def main(options: JobOptions) -> None:
    """Run the stages."""
    with Workspace(options) as workspace:
        workspace.check_rerun(names(workspace))
        for each in stages(workspace):
            print(workspace.run(each))
