"""The backbones of an experiment, pre-trained on the training tasks."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from promptdiffuser.experiment import Experiment
from promptdiffuser.keys import deciding, fingerprint
from promptdiffuser.methods.backbones import PROMPTED, backbone_config
from promptdiffuser.methods.inputs import InputsSettings
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.pipeline.graph import Given, Stage
from promptdiffuser.rollout.protocol import ProtocolConfig
from promptdiffuser.tasks import get_family
from promptdiffuser.training.checkpoint import read_manifest
from promptdiffuser.training.engine import OptimisationConfig
from promptdiffuser.training.model_folders import load_backbone
from promptdiffuser.training.precision import resolve_precisions

if TYPE_CHECKING:
    from promptdiffuser.pipeline.session import StageRun

VERSION = 1
MODEL = Path("model")
"""Name of the folder with the trained model, inside the folder of the stage."""


@dataclass(frozen=True)
class Backbone:
    """A frozen backbone and its sizes."""

    node: Stage | Given
    config: BackboneConfig


def stage(experiment: Experiment, dataset: Stage | Given, variant: str = PROMPTED) -> Stage:
    """Return the stage that pre-trains a variant of the backbone."""
    backbone = backbone_config(variant, experiment.backbone)
    settings = {
        "family": experiment.family,
        "seed": experiment.seed,
        "quality": experiment.quality,
        "backbone": deciding(backbone),
        "pretraining": deciding(experiment.pretraining),
        "rounds": rounds_settings(experiment),
        "validation": validation_settings(experiment, experiment.pretraining.optimisation),
    }

    def work(run: "StageRun") -> None:
        from promptdiffuser.pipeline.work.pretrain import pretrain

        pretrain(run, experiment, backbone, variant)

    return Stage(
        name_of(variant),
        "pretrain",
        f"promptdiffuser stage pretrain {experiment.name}",
        resolve_precisions(settings, training_device(experiment)),
        work,
        VERSION,
        {"dataset": dataset},
        checkpoints=(MODEL,),
        product=MODEL,
        takes=workers(experiment),
        content_of=lambda folder: fingerprint(read_manifest(folder / MODEL)),
        progress=training_progress,
    )


def given(folder: Path, family: str) -> Backbone:
    """Return a backbone that the user passes; raises `UserError` if none lies there."""
    model, _ = load_backbone(folder, get_family(family), torch.device("cpu"))
    return Backbone(Given("backbone", str(folder), fingerprint(read_manifest(folder))), model.config)


def name_of(variant: str) -> str:
    """Return the name of the stage that pre-trains a variant of the backbone."""
    return "pretrain" if variant == PROMPTED else f"pretrain-{variant}"


def training_device(experiment: Experiment) -> torch.device:
    """Return the kind of device that trainings and adaptations run on."""
    return torch.device("cuda" if experiment.cluster.gpus_per_worker else "cpu")


def workers(experiment: Experiment) -> str:
    """Say what a training on Ray Train takes of the cluster."""
    cluster = experiment.cluster
    gpus = f" and {cluster.gpus_per_worker:g} GPUs" if cluster.gpus_per_worker else ""
    count = f"{cluster.train_workers}"
    if cluster.max_train_workers:
        count += f" to {cluster.max_train_workers}"
    return f"{count} workers of {cluster.cpus_per_worker} CPUs{gpus}"


def tasks_taken(experiment: Experiment) -> str:
    """Say what independent pieces of work take of the cluster."""
    gpus = experiment.cluster.gpus_per_task
    return f"all CPUs, {gpus:g} GPUs a task" if gpus else "all CPUs"


def training_progress(root: Path, folder: Path) -> str:
    """Say how far the training in a folder is."""
    try:
        note = json.loads((folder / "progress.json").read_text())
    except (FileNotFoundError, ValueError):
        return ""
    return f"update {note['step']} of {note['steps']}"


def rounds_settings(experiment: Experiment) -> dict[str, int] | None:
    """Return what of the rounds of a streamed training decides its batches; a resident one has none."""
    return asdict(experiment.rounds) if experiment.cluster.data == "streaming" else None


def validation_settings(experiment: Experiment, optimisation: OptimisationConfig) -> dict[str, Any] | None:
    """Return how the snapshots of a training are scored; None if it takes none."""
    if not optimisation.snapshot_every:
        return None
    return evaluation_settings(experiment, experiment.validation.protocol(experiment.evaluation))


def evaluation_settings(experiment: Experiment, protocol: ProtocolConfig) -> dict[str, Any]:
    """Return how episodes are played, in the number format that the rollout actors use."""
    device = torch.device("cuda" if experiment.cluster.gpus_per_actor else "cpu")
    settings: dict[str, Any] = resolve_precisions(deciding(protocol), device)
    return settings


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
