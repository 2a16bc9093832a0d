"""Bottleneck adapters after the attention and the MLP of every block (Houlsby et al. 2019), tuned on few-shot episodes.

The Prompt Diffuser paper compares with an "Adaptor" and gives no detail of it.
"""

from dataclasses import dataclass

from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Method
from promptdiffuser.methods.tuned_weights import WeightTuningConfig, tune_weights
from promptdiffuser.models.adapters import add_adapters
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
    config, generator = inputs.config.adapters, torch_generator(inputs.seed, "adapters", inputs.task, "initial")
    return tune_weights(
        inputs,
        config,
        inputs.few_shot,
        "adapters",
        prepare=lambda backbone: add_adapters(backbone, config.bottleneck, generator),
    )


METHOD = Method(
    "adapters", adapt, "bottleneck adapters in every block, tuned", changes_weights=True, settings="adapters"
)
