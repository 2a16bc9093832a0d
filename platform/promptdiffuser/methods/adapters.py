"""Bottleneck adapters after the attention and the MLP of every block (Houlsby et al. 2019), tuned on few-shot episodes.

The Prompt Diffuser paper compares with an "Adaptor" and gives no detail of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Method, register
from promptdiffuser.methods.tuned_weights import WeightTuningConfig, tune_weights
from promptdiffuser.models.adapters import add_adapters, bottleneck_in
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.rng import torch_generator


@dataclass(frozen=True)
class AdaptersConfig(WeightTuningConfig):
    """Settings of adapters."""

    bottleneck: int = 16
    """Features between the two layers of an adapter."""

    def __post_init__(self) -> None:
        """Refuse adapters without features."""
        super().__post_init__()
        if self.bottleneck < 1:
            raise ValueError(f"bottleneck must be at least 1, got {self.bottleneck}")


def adapt(inputs: AdaptationInputs) -> Adaptation:
    """Add adapters to a copy of the backbone and tune them."""
    config: AdaptersConfig = inputs.settings
    generator = torch_generator(inputs.seed, "adapters", inputs.task, "initial")
    return tune_weights(
        inputs,
        config,
        inputs.few_shot,
        "adapters",
        prepare=lambda backbone: add_adapters(backbone, config.bottleneck, generator),
    )


def rebuild(backbone: PromptDT, weights: Mapping[str, Tensor]) -> PromptDT:
    """Add adapters of the size that some weights have."""
    return add_adapters(backbone, bottleneck_in(weights), torch.Generator())


register(
    Method(
        "adapters",
        adapt,
        "bottleneck adapters in every block, tuned",
        label="Adapters",
        settings=AdaptersConfig,
        changes_weights=True,
        rebuild=rebuild,
    ),
    place=160,
)
