"""LoRA (Hu et al. 2022): low-rank changes of every block's weight matrices, tuned on few-shot episodes, then merged."""

from dataclasses import dataclass

from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Method, register
from promptdiffuser.methods.tuned_weights import WeightTuningConfig, tune_weights
from promptdiffuser.models.adapters import add_low_rank, merge_low_rank
from promptdiffuser.rng import torch_generator


@dataclass(frozen=True)
class LoraConfig(WeightTuningConfig):
    """Settings of lora."""

    rank: int = 4
    """Rank of the change of a weight matrix."""
    alpha: float = 8.0
    """The change is multiplied by alpha / rank."""

    def __post_init__(self) -> None:
        """Refuse changes that are none."""
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.alpha <= 0:
            raise ValueError(f"alpha must be positive, got {self.alpha}")


def adapt(inputs: AdaptationInputs) -> Adaptation:
    """Tune low-rank changes of a copy of the backbone and add them to its weights."""
    config: LoraConfig = inputs.settings
    generator = torch_generator(inputs.seed, "lora", inputs.task, "initial")
    return tune_weights(
        inputs,
        config,
        inputs.few_shot,
        "lora",
        prepare=lambda backbone: add_low_rank(backbone, config.rank, config.alpha, generator),
        finish=merge_low_rank,
    )


register(
    Method(
        "lora",
        adapt,
        "low-rank changes of every block's weights, tuned",
        label="LoRA",
        settings=LoraConfig,
        changes_weights=True,
    ),
    place=170,
)
