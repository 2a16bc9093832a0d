"""Diffusers that are trained on the training tasks; methods that differ only in how they use one share it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from promptdiffuser.registry import Registry


@dataclass(frozen=True)
class DiffuserVariant:
    """How the multi-task training of a diffuser departs from the experiment's settings."""

    sees_task_context: bool = False
    """Whether it sees few-shot transitions besides y = (returns-to-go, timesteps)."""
    learns_optimised_prompts: bool = False
    """Whether its multi-task training sees the outcome of tuning the training tasks' prompts in the place of these."""
    denoiser: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the denoiser's configuration that differ from the experiment's."""
    guidance: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the guidance's configuration that differ from the experiment's, in the few-shot stage too."""


JOINT = {"losses": "joint", "project": "gradient"}
DIFFUSERS = Registry(
    "diffuser",
    {
        "published": DiffuserVariant(),
        "context": DiffuserVariant(sees_task_context=True),
        # Decision Diffuser's share of prompts that are shown without their condition.
        "condition-dropout": DiffuserVariant(denoiser={"condition_dropout": 0.25}),
        # The paper's ablation arms ab:dm, ab:dt and ab:all. The arm with the projection is `context` itself.
        "context-dm": DiffuserVariant(
            sees_task_context=True,
            guidance=JOINT | {"weight": 0.0, "initial_weight": 0.0, "weight_schedule": "constant"},
        ),
        "context-dt": DiffuserVariant(
            sees_task_context=True,
            guidance={"losses": "downstream", "projection": "sum", "project": "gradient", "match_norms": False},
        ),
        "context-sum": DiffuserVariant(sees_task_context=True, guidance=JOINT | {"projection": "sum"}),
        "context-optimised": DiffuserVariant(sees_task_context=True, learns_optimised_prompts=True),
    },
)
