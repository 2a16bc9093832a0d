"""Train the Prompt Diffusers of an experiment: multi-task on Ray Train, then few-shot on each target task as Ray tasks.

python jobs/train_diffuser.py quickstart --guidance.weight 2
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pretrain
import torch
from workspace import JobOptions, Stage, StageRun, Workspace, run_job

from promptdiffuser.data.plans import Rounds
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.training import TrainJob, train_few_shot
from promptdiffuser.learning.engine import OptimisationConfig
from promptdiffuser.learning.model_folders import load_backbone
from promptdiffuser.learning.trainings import DiffuserTraining
from promptdiffuser.methods import get_method
from promptdiffuser.methods.adaptation import Method
from promptdiffuser.tasks import get_family


def diffuser_methods(workspace: Workspace) -> list[Method]:
    """Return the experiment's methods that need a diffuser."""
    return [method for name in workspace.experiment.methods if (method := get_method(name)).trains_diffuser]


def multi_task_stage(workspace: Workspace, method: Method) -> Stage:
    """Return the stage that trains a method's diffuser on the training tasks."""
    experiment = workspace.experiment
    dataset = pretrain.checked_dataset(workspace)
    training = training_of(workspace, method, "multi-task", experiment.diffuser.multi_task)

    def work(run: StageRun) -> None:
        validation = pretrain.validation_of(dataset, experiment, method.name, training.backbone_folder)
        pretrain.train_with_ray(run, training, dataset, experiment, validation)

    return Stage(
        f"diffuser-{method.name}",
        "train-diffuser",
        settings_of(training) | {"validation": dataclasses.asdict(experiment.validation)},
        work,
        f"python jobs/train_diffuser.py {experiment.name}",
    )


def few_shot_stage(workspace: Workspace, tasks: Sequence[int]) -> Stage:
    """Return the stage that trains every method's diffuser on the few-shot episodes of each target task."""
    experiment = workspace.experiment
    dataset = pretrain.checked_dataset(workspace)
    trainings: dict[tuple[str, int], DiffuserTraining] = {}
    for method in diffuser_methods(workspace):
        few_shot = dataclasses.replace(
            training_of(workspace, method, "few-shot", experiment.diffuser.few_shot),
            start_from=workspace.finished(multi_task_stage(workspace, method)) / "model",
            # The multi-task stage has learnt the data's shape; every few-shot update is guided.
            guidance_start=0,
            held_out_episodes=experiment.diffuser.held_out_episodes,
            # A few episodes are one piece.
            rounds=Rounds(),
        )
        for task in tasks:
            trainings[method.name, task] = dataclasses.replace(few_shot, stage=f"few-shot-{task}")

    def work(run: StageRun) -> None:
        connect(experiment.cluster)
        jobs = [
            TrainJob(
                training,
                dataset,
                (task,),
                experiment.evaluation.few_shot.quality,
                few_shot_folder(run.folder, method, task),
                run.tracker.run(
                    f"few-shot {method} task {task}",
                    f"{Path(run.folder).name}/{method}/{task}",
                    run.run,
                    {"promptdiffuser.stage": "few-shot-task", "promptdiffuser.task": str(task)},
                ),
            )
            for (method, task), training in trainings.items()
        ]
        with run.watch_training([job.folder for job in jobs]):
            train_few_shot(
                jobs,
                experiment.evaluation.few_shot,
                lambda job: job.run.finish(),
                num_gpus=min(1.0, experiment.cluster.gpus_per_worker),
            )

    return Stage(
        "few-shot",
        "few-shot",
        {f"{method}/{task}": settings_of(training) for (method, task), training in trainings.items()}
        | {"few_shot": dataclasses.asdict(experiment.evaluation.few_shot)},
        work,
        f"python jobs/train_diffuser.py {experiment.name}",
    )


def few_shot_folder(stage_folder: Path, method: str, task: int) -> Path:
    """Return where the training of a method on a target task writes."""
    return stage_folder / method / f"task-{task}"


def training_of(workspace: Workspace, method: Method, stage: str, optimisation: OptimisationConfig) -> DiffuserTraining:
    """Return a training of a method's diffuser with the experiment's settings."""
    experiment, dataset = workspace.experiment, pretrain.checked_dataset(workspace)
    folder = pretrain.backbone_folder(workspace).resolve()
    backbone, _ = load_backbone(folder, get_family(experiment.family), torch.device("cpu"))
    return DiffuserTraining(
        family=experiment.family,
        seed=experiment.seed,
        stage=stage,
        backbone_folder=folder,
        denoiser=experiment.denoiser,
        diffusion=experiment.diffusion,
        guidance=experiment.guidance,
        with_context=method.sees_task_context,
        batch_size=experiment.diffuser.batch_size,
        guidance_start=experiment.diffuser.guidance_start,
        context_episodes=experiment.diffuser.context_episodes,
        context_transitions=experiment.diffuser.context_transitions,
        optimisation=optimisation,
        prompt_length=backbone.config.prompt_length,
        window_steps=backbone.config.window_steps,
        dataset_digest=dataset.manifest.digest,
        rounds=pretrain.rounds_of(dataset, experiment),
    )


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
        for method in diffuser_methods(workspace):
            print(workspace.run(multi_task_stage(workspace, method)) / "model")
        print(workspace.run(few_shot_stage(workspace, get_family(options.experiment.family).test_tasks)))


if __name__ == "__main__":
    run_job(main, __doc__ or "")
