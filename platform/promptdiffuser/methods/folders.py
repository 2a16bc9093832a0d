"""Adapted policies on storage: prompts, weights that differ from the frozen backbone's, cost and origin."""

import copy
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from promptdiffuser.data.windows import Segments
from promptdiffuser.errors import UserError
from promptdiffuser.files import sha256
from promptdiffuser.methods.adaptation import Adaptation, Cost, Method
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.rollout.policies import AdaptedPolicy
from promptdiffuser.training.backbone_objective import freeze
from promptdiffuser.training.checkpoint import MANIFEST, load_checkpoint, read_manifest, save_checkpoint

TOKENS = "tokens"
ORIGIN = "origin"


@dataclass(frozen=True)
class Origin:
    """What an adapted policy was made for, and from which frozen backbone."""

    family: str
    task: int
    method: str
    target_return: float
    """Return that the evaluation asks for at the first step, in the unit of the reward."""
    backbone: str
    """Path of the backbone's folder, relative to the policy's own, so that an experiment can move as a whole."""
    backbone_digest: str
    """SHA-256 of the backbone's manifest."""

    @staticmethod
    def of(folder: Path, family: str, task: int, method: str, target_return: float, backbone_folder: Path) -> "Origin":
        """Return the origin of a policy that will lie in `folder`."""
        relative = os.path.relpath(backbone_folder.resolve(), folder.resolve())
        return Origin(family, task, method, target_return, relative, sha256(backbone_folder / MANIFEST))

    def backbone_folder(self, folder: Path) -> Path:
        """Return the folder of the backbone that the policy in `folder` adapts.

        Raises:
            UserError: It is not there, or holds another backbone by now.
        """
        found = (folder.resolve() / self.backbone).resolve()
        if not (found / MANIFEST).is_file():
            raise UserError(
                f"{folder} adapts the backbone in {found}, which is not there; move the folder of an experiment as a "
                "whole, and a backbone from elsewhere with it"
            )
        if sha256(found / MANIFEST) != self.backbone_digest:
            raise UserError(f"{folder} adapts a backbone that lay in {found} before; another one is there now")
        return found


def read_origin(folder: Path) -> Origin:
    """Return what the policy in a folder was made for and from.

    Raises:
        UserError: It is no adapted policy, a broken one, or one of an earlier version, which did not say it.
    """
    files = read_manifest(folder)
    if "prompts.safetensors" not in files:
        raise UserError(
            f"{folder} holds no adapted policy; the pipeline writes one to adaptations/METHOD-*/task-N/policy"
        )
    if f"{ORIGIN}.json" not in files:
        raise UserError(
            f"{folder} does not say which backbone it adapts, as an earlier version wrote it; "
            "make it again with: promptdiffuser run EXPERIMENT --rerun adapt"
        )
    return Origin(**load_checkpoint(folder).documents[ORIGIN])


def save_adaptation(folder: Path, adaptation: Adaptation, frozen: PromptDT, origin: Origin) -> None:
    """Write an adaptation of a frozen backbone."""
    policy, before = adaptation.policy, frozen.state_dict()
    if isinstance(policy.prompts, Tensor):
        prompts = {TOKENS: policy.prompts}
    else:
        prompts = {field.name: getattr(policy.prompts, field.name) for field in fields(Segments)}
    weights = {
        name: tensor
        for name, tensor in policy.backbone.state_dict().items()
        if name not in before or not torch.equal(tensor, before[name])
    }
    tensors = {"prompts": prompts} | ({"weights": weights} if weights else {})
    save_checkpoint(folder, tensors, {"cost": asdict(adaptation.cost), ORIGIN: asdict(origin)})


def load_adaptation(folder: Path, frozen: PromptDT, method: Method) -> Adaptation:
    """Read an adaptation by a method; the policy has the frozen backbone itself if the method left it as it was."""
    checkpoint = load_checkpoint(folder, torch.device("cpu"))
    prompts = checkpoint.tensors["prompts"]
    backbone = frozen
    if "weights" in checkpoint.tensors:
        weights, backbone = checkpoint.tensors["weights"], copy.deepcopy(frozen)
        if method.rebuild is not None:
            backbone = method.rebuild(backbone, weights)
        freeze(backbone).load_state_dict(frozen.state_dict() | weights)
    return Adaptation(
        AdaptedPolicy(backbone, prompts[TOKENS] if TOKENS in prompts else Segments(**prompts)),
        Cost(**checkpoint.documents["cost"]),
    )
