"""Trained models on storage: weights, configuration and statistics in one checkpoint folder.

A backbone folder holds the normaliser beside the weights, a diffuser folder that and its prompt space.
`device` is where the loaded tensors live.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.diffusion.diffuser import Diffuser
from promptdiffuser.diffusion.process import Diffusion, DiffusionConfig
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.errors import UserError
from promptdiffuser.models.backbone import BackboneConfig, PromptDT
from promptdiffuser.models.denoiser import Denoiser, DenoiserConfig
from promptdiffuser.rng import seed_at
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.family import TaskFamily
from promptdiffuser.training.backbone_objective import freeze
from promptdiffuser.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def build_backbone(config: BackboneConfig, family: TaskFamily, *address: int | str) -> PromptDT:
    """Return a new backbone whose initial weights are addressed by seed."""
    with addressed_initialisation(*address):
        return PromptDT(config, family.observation_dim, family.action_dim, family.horizon)


def build_diffuser(
    config: DenoiserConfig,
    process: DiffusionConfig,
    space: PromptSpace,
    family: TaskFamily,
    with_context: bool,
    *address: int | str,
) -> Diffuser:
    """Return a new diffuser whose initial weights are addressed by seed."""
    goals_UG = goals_of(family).to(space.low.device) if with_context and config.context == "goal" else None
    transition_features = family.observation_dim + family.action_dim + 1 if goals_UG is None else goals_UG.shape[1]
    with addressed_initialisation(*address):
        denoiser = Denoiser(
            config, space.prompt_shape, space.condition_features, transition_features if with_context else 0
        )
    return Diffuser(denoiser.to(space.low.device), Diffusion(process, space.low, space.high), space, goals_UG)


def save_backbone(folder: Path, weights: dict[str, Tensor], document: dict[str, Any], normaliser: Normaliser) -> Path:
    """Write a trained backbone; `document` holds family, config, dataset digest and steps."""
    tensors = {"weights": weights, "normaliser": normaliser.tensors()}
    return save_checkpoint(folder, tensors, {"model": document | {"kind": "backbone"}})


def load_backbone(folder: Path, family: TaskFamily, device: torch.device) -> tuple[PromptDT, Normaliser]:
    """Read a frozen backbone and its normaliser.

    Raises:
        UserError: The checkpoint is broken, of another kind or family, or has weights that are not finite.
    """
    checkpoint = load_checkpoint(folder, device)
    document = _checked(checkpoint, folder, "backbone", family)
    model = PromptDT(
        BackboneConfig(**document["config"]), family.observation_dim, family.action_dim, family.horizon
    ).to(device)
    model.load_state_dict(checkpoint.tensors["weights"])
    return freeze(model), Normaliser(**checkpoint.tensors["normaliser"])


def save_diffuser(
    folder: Path, weights: dict[str, Tensor], document: dict[str, Any], space: PromptSpace, normaliser: Normaliser
) -> Path:
    """Write a trained diffuser; `document` is a `diffuser_document`, `normaliser` that of its backbone."""
    tensors = {f.name: getattr(space, f.name) for f in fields(space) if isinstance(getattr(space, f.name), Tensor)}
    sizes = {"action_dim": space.action_dim, "horizon": space.horizon}
    return save_checkpoint(
        folder,
        {"weights": weights, "space": tensors, "normaliser": normaliser.tensors()},
        {"model": document | {"kind": "diffuser", "space": sizes}},
    )


def load_diffuser(folder: Path, family: TaskFamily, device: torch.device) -> Diffuser:
    """Read a diffuser.

    Raises:
        UserError: The checkpoint is broken, of another kind or family, or has weights that are not finite.
    """
    checkpoint = load_checkpoint(folder, device)
    document = _checked(checkpoint, folder, "diffuser", family)
    space = PromptSpace(**{**checkpoint.tensors["space"], **document["space"]})
    diffuser = build_diffuser(
        DenoiserConfig(**document["denoiser"]),
        DiffusionConfig(**document["diffusion"]),
        space,
        family,
        document["with_context"],
        "loaded",
    )
    diffuser.denoiser.load_state_dict(checkpoint.tensors["weights"])
    return diffuser


@dataclass(frozen=True)
class DiffuserData:
    """How episodes are prepared for a diffuser."""

    family: TaskFamily
    normaliser: Normaliser
    context_transitions: int
    """Transitions of each episode that a task context sees."""


def load_diffuser_data(folder: Path) -> DiffuserData:
    """Read how episodes are prepared for the diffuser in a folder.

    Raises:
        UserError: The checkpoint is broken, holds no diffuser, or one of an earlier version, which did not say it.
    """
    checkpoint = load_checkpoint(folder)
    document = _document(checkpoint, folder, "diffuser")
    if "context_transitions" not in document:
        raise UserError(
            f"{folder} does not say how episodes are prepared for it, as an earlier version wrote it; "
            "make it again with: promptdiffuser run EXPERIMENT --rerun diffuser-NAME"
        )
    return DiffuserData(
        get_family(document["family"]), Normaliser(**checkpoint.tensors["normaliser"]), document["context_transitions"]
    )


def count_parameters(folder: Path) -> int:
    """Return how many numbers the weights of a saved backbone or diffuser are."""
    with safe_open(folder / "weights.safetensors", framework="pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def diffuser_document(
    family: TaskFamily,
    denoiser: DenoiserConfig,
    process: DiffusionConfig,
    with_context: bool,
    context_transitions: int,
    **provenance: Any,
) -> dict[str, Any]:
    """Return what is needed to rebuild a diffuser and to prepare episodes for it, and where it came from."""
    return {
        "family": family.name,
        "denoiser": asdict(denoiser),
        "diffusion": asdict(process),
        "with_context": with_context,
        "context_transitions": context_transitions,
        **provenance,
    }


def goals_of(family: TaskFamily) -> Tensor:
    """Return the goals (U, G) of a family by task id, standardised over the training tasks; ids it lacks have NaN."""
    goals_UG = torch.full((max(family.tasks) + 1, len(family.goal(family.tasks[0]))), torch.nan)
    for task in family.tasks:
        goals_UG[task] = torch.tensor(family.goal(task))
    training = goals_UG[list(family.train_tasks)]
    spread_G = training.std(0, correction=0)
    # What all training tasks share is left as it is.
    return (goals_UG - training.mean(0)) / torch.where(spread_G > 1e-6, spread_G, 1.0)


def _document(checkpoint: Checkpoint, folder: Path, kind: str) -> dict[str, Any]:
    document: dict[str, Any] = checkpoint.documents.get("model", {})
    if document.get("kind") != kind:
        raise UserError(
            f"{folder} holds no {kind} but {document.get('kind', 'training state')!r}; pass a {kind} folder"
        )
    return document


def _checked(checkpoint: Checkpoint, folder: Path, kind: str, family: TaskFamily) -> dict[str, Any]:
    document = _document(checkpoint, folder, kind)
    if document["family"] != family.name:
        raise UserError(
            f"{folder} was trained on family {document['family']!r}, this experiment is on {family.name!r}; "
            f"pass a checkpoint of {family.name} or train one"
        )
    for file, tensors in checkpoint.tensors.items():
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise UserError(f"{folder}: {name} in {file}.safetensors is not finite; train the {kind} again")
    return document


@contextmanager
def addressed_initialisation(*address: int | str) -> Iterator[None]:
    """Seed torch's global generator while a network draws its initial weights, and restore it after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_at(*address, "weights"))
        yield
