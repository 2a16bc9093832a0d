"""Ray Data reads and shards the dataset, Ray Train trains on it."""

from pathlib import Path

from promptdiffuser.assembly import backbone_training
from promptdiffuser.data.store import Dataset
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.training import TrainJob, train_on_cluster
from promptdiffuser.distributed.validation import Validation
from promptdiffuser.experiment import Experiment
from promptdiffuser.methods.backbones import PROMPTED
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.pipeline.session import StageRun
from promptdiffuser.pipeline.stages.pretrain import MODEL, inputs_settings
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.training.trainings import Training


def pretrain(run: StageRun, experiment: Experiment, backbone: BackboneConfig, variant: str) -> None:
    """Train a backbone in the stage's folder and register it."""
    dataset = run.dataset(experiment)
    training = backbone_training(experiment, dataset, backbone)
    train_with_ray(run, training, dataset, experiment, validation_of(dataset, experiment, PROMPTED))
    suffix = "" if variant == PROMPTED else f"-{variant}"
    run.log.log_model(f"{experiment.name}-backbone{suffix}", run.folder / MODEL, "pretrain")


def validation_of(
    dataset: Dataset, experiment: Experiment, method: str, backbone_folder: Path | None = None
) -> Validation:
    """Return how the snapshots of a training are scored; `backbone_folder` is a diffuser's frozen backbone."""
    protocol = experiment.validation.protocol(experiment.evaluation)
    return Validation(method, dataset, inputs_settings(experiment, protocol), protocol, backbone_folder)


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
    job = TrainJob(training, dataset, tasks, quality, run.folder, run.log)
    with run.watch_training([run.folder]):
        train_on_cluster(job, experiment.cluster, validation if validates else None)


def log_input(run: StageRun, dataset: Dataset, tasks: tuple[int, ...], quality: Quality) -> None:
    """Say in MLflow which dataset, and how much of it, a stage reads."""
    episodes = sum(record.episodes for _, record in dataset.files(tasks, quality))
    manifest = dataset.manifest
    run.log.log_dataset(manifest.family, manifest.digest, dataset.location, {"tasks": len(tasks), "episodes": episodes})
