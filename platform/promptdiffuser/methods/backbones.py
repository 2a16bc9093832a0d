"""Variants of the backbone that methods adapt; each is pre-trained alike, on the same data.

MT-ORL, MT-BC and Prompt-MT-BC are the public code's `--no-prompt` and `--no-rtg` (mxu34/prompt-dt at 5f665e5,
pdt_main.py).
"""

from dataclasses import replace
from typing import Any

from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.registry import Registry

PROMPTED = "prompt-dt"
BACKBONES: Registry[dict[str, Any]] = Registry(
    "backbone",
    {
        PROMPTED: {},
        "mt-orl": {"sees_prompt": False},
        "mt-bc": {"sees_prompt": False, "sees_returns": False},
        "prompt-mt-bc": {"sees_returns": False},
    },
)
"""Name -> fields of the backbone's configuration that differ from the experiment's."""


def backbone_config(variant: str, config: BackboneConfig) -> BackboneConfig:
    """Return the configuration of a variant."""
    return replace(config, **BACKBONES[variant])
