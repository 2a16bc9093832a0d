"""Control: the raw numbers of trajectory prompts, tuned by Adam through the frozen backbone.

What Prompt-Tuning DT searches without gradients, with them. The published comparison lacks it.
"""

from dataclasses import dataclass

from torch import nn

from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Cost, Method, register
from promptdiffuser.methods.prompt_numbers import numbers_of, with_numbers
from promptdiffuser.rollout.policies import AdaptedPolicy
from promptdiffuser.training.tuning import FewShotTuning, TuningConfig, tune


@dataclass(frozen=True)
class PromptTensorTuningConfig(TuningConfig):
    """Settings of prompt-tensor-tuning."""

    learning_rate: float = 0.03
    """Step size of AdamW, constant."""


def adapt(inputs: AdaptationInputs) -> Adaptation:
    """Tune every prompt from the few-shot prompt that it begins as."""
    config: PromptTensorTuningConfig = inputs.settings
    start = inputs.few_shot_prompts(config.num_seen(len(inputs.few_shot.pool.prompts)))
    numbers_PX = nn.Parameter(numbers_of(start))
    task = FewShotTuning(
        nn.ParameterList([numbers_PX]),
        inputs.backbone,
        lambda rows_B: with_numbers(start.select(rows_B), numbers_PX[rows_B]),
        inputs.few_shot.windows,
        inputs.few_shot.pool.index,
        config,
        (inputs.seed, "prompt-tensor-tuning", inputs.task),
        num_prompts=inputs.num_prompts,
    )
    tune(task)
    prompts = with_numbers(start, numbers_PX.detach())
    return Adaptation(AdaptedPolicy(inputs.backbone, prompts), Cost(numbers_PX.shape[1], config.steps))


register(
    Method(
        "prompt-tensor-tuning",
        adapt,
        "the prompt's numbers tuned by Adam: a strong control",
        label="Prompt tensor tuning",
        settings=PromptTensorTuningConfig,
    ),
    place=120,
)
