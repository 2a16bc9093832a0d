"""Pre-train the Prompt-DT backbone on the training tasks: Ray Data reads and shards, Ray Train trains.

python jobs/pretrain.py quickstart --cluster.train-workers 1
"""

import dataclasses
from functools import cache
from pathlib import Path

import torch

from promptdiffuser.assembly import backbone_training, rounds_of
from promptdiffuser.data.store import Dataset, open_dataset
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.training import TrainJob, train_on_cluster
from promptdiffuser.distributed.validation import Validation
from promptdiffuser.errors import UserError
from promptdiffuser.experiment import Experiment
from promptdiffuser.methods import get_method
from promptdiffuser.methods.backbones import PROMPTED, backbone_config
from promptdiffuser.methods.inputs import InputsSettings
from promptdiffuser.pipeline.options import JobOptions
from promptdiffuser.pipeline.session import Stage, StageRun, Workspace
from promptdiffuser.pipeline.stages import collect
from promptdiffuser.rollout.protocol import ProtocolConfig
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.training.precision import resolve_precisions
from promptdiffuser.training.trainings import Training

MODEL = Path("model")
"""Name of the folder with the trained model, inside the folder of the stage."""


def variants(workspace: Workspace) -> list[str]:
    """Return the variants of the backbone that the experiment's methods need and that were not passed, each once.

    Diffusers are trained through the one with prompts and returns.
    """
    methods = [get_method(name) for name in workspace.experiment.methods]
    needed = dict.fromkeys(method.backbone for method in methods)
    return [name for name in needed if not (name == PROMPTED and workspace.options.backbone_checkpoint)]


def stage(workspace: Workspace, variant: str = PROMPTED) -> Stage:
    """Return the stage that pre-trains a variant of the backbone."""
    experiment = workspace.experiment
    backbone = backbone_config(variant, experiment.backbone)
    family = get_family(experiment.family)
    dataset = checked_dataset(workspace)
    settings = {
        "family": family.name,
        "seed": experiment.seed,
        "dataset": dataset.manifest.digest,
        "quality": experiment.quality,
        "backbone": dataclasses.asdict(backbone),
        "pretraining": dataclasses.asdict(experiment.pretraining),
        "rounds": rounds_of(dataset, experiment).settings,
        "validation": dataclasses.asdict(experiment.validation),
    }

    def work(run: StageRun) -> None:
        training = backbone_training(experiment, dataset, backbone)
        train_with_ray(run, training, dataset, experiment, validation_of(dataset, experiment, "prompt-dt"))
        suffix = "" if variant == PROMPTED else f"-{variant}"
        run.run.log_model(f"{experiment.name}-backbone{suffix}", run.folder / "model", "pretrain")

    return Stage(
        name_of(variant),
        "pretrain",
        resolve_precisions(settings, training_device(experiment)),
        work,
        f"python jobs/pretrain.py {experiment.name}",
        checkpoints=(MODEL,),
    )


def name_of(variant: str) -> str:
    """Return the name of the stage that pre-trains a variant of the backbone."""
    return "pretrain" if variant == PROMPTED else f"pretrain-{variant}"


def training_device(experiment: Experiment) -> torch.device:
    """Return the kind of device that trainings and adaptations run on."""
    return torch.device("cuda" if experiment.cluster.gpus_per_worker else "cpu")


def inputs_settings(experiment: Experiment, protocol: ProtocolConfig) -> InputsSettings:
    """Return what methods see in an evaluation of some size."""
    return InputsSettings(
        experiment.quality,
        protocol.few_shot,
        experiment.diffuser.context_transitions,
        experiment.adaptation,
        protocol.num_prompts,
        protocol.targets(get_family(experiment.family))[0],
        experiment.seed,
    )


def validation_of(
    dataset: Dataset, experiment: Experiment, method: str, backbone_folder: Path | None = None
) -> Validation:
    """Return how the snapshots of a training are scored; `backbone_folder` is a diffuser's frozen backbone."""
    protocol = experiment.validation.protocol(experiment.evaluation)
    return Validation(method, dataset, inputs_settings(experiment, protocol), protocol, backbone_folder)


def backbone_folder(workspace: Workspace, variant: str = PROMPTED) -> Path:
    """Return a backbone that the experiment adapts: the one passed, or its own pretrain stage's."""
    if workspace.base is not None:
        return backbone_folder(workspace.base, variant)
    if variant == PROMPTED and workspace.options.backbone_checkpoint:
        return workspace.options.backbone_checkpoint
    return workspace.finished(stage(workspace, variant)) / "model"


@cache
def checked_dataset(workspace: Workspace) -> Dataset:
    """Return the experiment's dataset; raises `UserError` if it is broken, of another family, or lacks episodes."""
    dataset = _opened(collect.dataset_location(workspace))
    if dataset.manifest.family != workspace.experiment.family:
        raise UserError(
            f"{dataset.location} holds {dataset.manifest.family}, the experiment is on {workspace.experiment.family}"
        )
    dataset.files(dataset.family.train_tasks, workspace.experiment.quality)
    few_shot = workspace.experiment.evaluation.few_shot
    for task in (*dataset.family.validation_tasks, *dataset.family.test_tasks):
        dataset.check_few_shot(task, few_shot)
    methods = [get_method(name) for name in workspace.experiment.methods]
    for quality in dict.fromkeys(quality for method in methods for quality in method.qualities):
        for task in dataset.family.test_tasks:
            dataset.check_few_shot(task, dataclasses.replace(few_shot, quality=quality))
    return dataset


@cache
def _opened(location: str) -> Dataset:
    # All of it is read, so a job does it once and not for every stage or experiment that it puts together.
    return open_dataset(location)


def train_with_ray(
    run: StageRun,
    training: Training,
    dataset: Dataset,
    experiment: Experiment,
    validation: Validation | None = None,
) -> None:
    """Train on the training tasks, in the stage's folder, on Ray Train workers, showing the progress."""
    tasks, quality = dataset.family.train_tasks, experiment.quality
    validates = training.optimisation.snapshot_every > 0
    connect(experiment.cluster, validates=validates)
    log_input(run, dataset, tasks, quality)
    job = TrainJob(training, dataset, tasks, quality, run.folder, run.run)
    with run.watch_training([run.folder]):
        train_on_cluster(job, experiment.cluster, validation if validates else None)


def log_input(run: StageRun, dataset: Dataset, tasks: tuple[int, ...], quality: Quality) -> None:
    """Say in MLflow which dataset, and how much of it, a stage reads."""
    episodes = sum(record.episodes for _, record in dataset.files(tasks, quality))
    manifest = dataset.manifest
    run.run.log_dataset(manifest.family, manifest.digest, dataset.location, {"tasks": len(tasks), "episodes": episodes})


def main(options: JobOptions) -> None:
    """Run the stage."""
    with Workspace(options) as workspace:
        workspace.check_rerun(map(name_of, variants(workspace)))
        for variant in variants(workspace):
            print(workspace.run(stage(workspace, variant)) / "model")
