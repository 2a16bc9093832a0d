"""Train the diffusers of an experiment on the training tasks, with Ray Train.

python jobs/train_diffuser.py quickstart --guidance.weight 2
"""

import dataclasses

import pretrain
import torch
from inside import look_inside
from workspace import JobOptions, Stage, StageRun, Workspace, run_job

from promptdiffuser.learning.model_folders import load_backbone
from promptdiffuser.learning.trainings import DiffuserTraining
from promptdiffuser.methods import METHODS, get_method
from promptdiffuser.tasks import get_family
from promptdiffuser.trainings import diffuser_training, few_shot_training


def diffusers(workspace: Workspace) -> list[str]:
    """Return the diffusers that the experiment's methods need, each once."""
    needed = (get_method(name).diffuser for name in workspace.experiment.methods)
    return list(dict.fromkeys(diffuser for diffuser in needed if diffuser is not None))


def stage(workspace: Workspace, diffuser: str) -> Stage:
    """Return the stage that trains a diffuser on the training tasks."""
    experiment = workspace.experiment
    dataset = pretrain.checked_dataset(workspace)
    training = training_of(workspace, diffuser)
    # Snapshots are scored by what they generate without training on a target task, which all its methods share.
    scored_by = next(name for name, method in METHODS.items() if method.diffuser == diffuser)

    def work(run: StageRun) -> None:
        validation = pretrain.validation_of(dataset, experiment, scored_by, training.backbone_folder)
        pretrain.train_with_ray(run, training, dataset, experiment, validation)
        look_inside(run, workspace, {diffuser: dict.fromkeys(dataset.family.validation_tasks, run.folder / "model")})

    return Stage(
        f"diffuser-{diffuser}",
        "train-diffuser",
        settings_of(training) | {"validation": dataclasses.asdict(experiment.validation)},
        work,
        f"python jobs/train_diffuser.py {experiment.name}",
    )


def few_shot_of(workspace: Workspace, diffuser: str, task: int) -> DiffuserTraining:
    """Return a diffuser's training on the few-shot episodes of a target task."""
    start_from = workspace.finished(stage(workspace, diffuser)) / "model"
    return few_shot_training(training_of(workspace, diffuser), workspace.experiment, start_from, task)


def training_of(workspace: Workspace, diffuser: str) -> DiffuserTraining:
    """Return the multi-task training of a diffuser with the experiment's settings."""
    experiment, dataset = workspace.experiment, pretrain.checked_dataset(workspace)
    folder = pretrain.backbone_folder(workspace).resolve()
    backbone, _ = load_backbone(folder, get_family(experiment.family), torch.device("cpu"))
    return diffuser_training(experiment, dataset, diffuser, folder, backbone.config)


def settings_of(training: DiffuserTraining) -> dict[str, object]:
    """Name the models a training starts from by their content, so that a moved folder is the same input."""
    settings = dataclasses.asdict(training) | {
        "backbone_folder": (training.backbone_folder / "manifest.json").read_text(),
        # Which episodes lie in which file is part of the dataset's digest.
        "rounds": dataclasses.asdict(training.rounds.config),
    }
    if training.start_from is not None:
        settings["start_from"] = (training.start_from / "manifest.json").read_text()
    return settings


def main(options: JobOptions) -> None:
    """Run the stages."""
    with Workspace(options) as workspace:
        for diffuser in diffusers(workspace):
            print(workspace.run(stage(workspace, diffuser)) / "model")


if __name__ == "__main__":
    run_job(main, __doc__ or "")
