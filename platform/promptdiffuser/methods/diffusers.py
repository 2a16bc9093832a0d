"""Diffusers that are trained on the training tasks; methods that differ only in how they use one share it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DiffuserVariant:
    """How the multi-task training of a diffuser departs from the experiment's settings."""

    sees_task_context: bool = False
    """Whether it sees few-shot transitions besides y = (returns-to-go, timesteps)."""
    guidance: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the guidance's configuration that differ from the experiment's, in the few-shot stage too."""


DIFFUSERS: dict[str, DiffuserVariant] = {
    "published": DiffuserVariant(),
    "context": DiffuserVariant(sees_task_context=True),
}
