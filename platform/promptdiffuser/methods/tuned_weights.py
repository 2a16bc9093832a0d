"""What methods that tune weights of the backbone share: a copy, tuned with few-shot prompts, frozen again."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Cost, TaskData
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.rollout.policies import AdaptedPolicy
from promptdiffuser.training.backbone_objective import freeze
from promptdiffuser.training.tuning import FewShotTuning, TuningConfig, tune

Change = Callable[[PromptDT], PromptDT]


@dataclass(frozen=True)
class WeightTuningConfig(TuningConfig):
    """Settings of methods that tune weights."""

    learning_rate: float = 1e-3
    """Step size of AdamW, constant."""
    batch_steps: int = 640
    """Steps of history in one update, in windows: 32 of 20 steps."""


def tune_weights(
    inputs: AdaptationInputs,
    config: TuningConfig,
    data: TaskData,
    method: str,
    prepare: Change,
    finish: Change = lambda backbone: backbone,
) -> Adaptation:
    """Tune the trainable parameters of a copy of the backbone; every window has a prompt of an episode that is seen.

    The policy then has the prompts of the few-shot episodes in turn. There is no dropout, as early stopping limits
    what is learned of so few episodes.

    Args:
        inputs: What the method was given.
        config: How to tune.
        data: Episodes of the target task to learn from.
        method: Name of the method: where its randomness lives.
        prepare: Makes what is tuned trainable.
        finish: Makes a plain backbone of it again.
    """
    backbone = prepare(copy.deepcopy(inputs.backbone))
    task = FewShotTuning(
        backbone,
        backbone,
        data.pool.prompts.select,
        data.windows,
        data.pool.index,
        config,
        (inputs.seed, method, inputs.task),
    )
    num_tuned = sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)
    tune(task)
    policy = AdaptedPolicy(freeze(finish(backbone)), inputs.few_shot_prompts())
    return Adaptation(policy, Cost(num_tuned, config.steps))
