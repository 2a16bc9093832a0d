"""Adapted policies on storage: prompts, the weights that differ from the frozen backbone's, and what they cost."""

import copy
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from promptdiffuser.data.windows import Segments
from promptdiffuser.methods.adaptation import Adaptation, Cost
from promptdiffuser.models.adapters import add_adapters, bottleneck_in
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.rollout.policies import AdaptedPolicy
from promptdiffuser.training.backbone_objective import freeze
from promptdiffuser.training.checkpoint import load_checkpoint, save_checkpoint

TOKENS = "tokens"


def save_adaptation(folder: Path, adaptation: Adaptation, frozen: PromptDT) -> None:
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
    save_checkpoint(folder, tensors, {"cost": asdict(adaptation.cost)})


def load_adaptation(folder: Path, frozen: PromptDT) -> Adaptation:
    """Read an adaptation; the policy has the frozen backbone itself if the method left it as it was."""
    checkpoint = load_checkpoint(folder, torch.device("cpu"))
    prompts = checkpoint.tensors["prompts"]
    backbone = frozen
    if "weights" in checkpoint.tensors:
        weights, backbone = checkpoint.tensors["weights"], copy.deepcopy(frozen)
        if bottleneck := bottleneck_in(weights):
            add_adapters(backbone, bottleneck, torch.Generator())
        freeze(backbone).load_state_dict(frozen.state_dict() | weights)
    return Adaptation(
        AdaptedPolicy(backbone, prompts[TOKENS] if TOKENS in prompts else Segments(**prompts)),
        Cost(**checkpoint.documents["cost"]),
    )
