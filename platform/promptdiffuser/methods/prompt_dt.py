"""Prompt-DT: segments of episodes of the target task, as they are (Xu et al. 2022).

`prompt-dt` has those of the few-shot set. `prompt-dt-medium` and `prompt-dt-random` have those of as many medium and
random episodes, as in Table 2 of the Prompt Diffuser paper: what a prompt is worth whose actions are no expert's.
"""

from functools import partial

from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Method, register
from promptdiffuser.rollout.policies import AdaptedPolicy
from promptdiffuser.tasks.experts import Quality


def adapt(inputs: AdaptationInputs) -> Adaptation:
    """Take the few-shot episodes' prompts in turn."""
    return Adaptation(AdaptedPolicy(inputs.backbone, inputs.few_shot_prompts()))


def adapt_by(inputs: AdaptationInputs, quality: Quality) -> Adaptation:
    """Take the prompts of episodes of another quality in turn."""
    return Adaptation(AdaptedPolicy(inputs.backbone, inputs.few_shot_of(quality).pool.in_turn(inputs.num_prompts)))


register(Method("prompt-dt", adapt, "few-shot prompts as they are", label="Prompt-DT", colour="#56616f"), place=10)
register(
    Method(
        "prompt-dt-medium",
        partial(adapt_by, quality="medium"),
        "prompts of medium episodes",
        label="Prompt-DT, medium prompts",
        qualities=("medium",),
    ),
    place=10,
)
register(
    Method(
        "prompt-dt-random",
        partial(adapt_by, quality="random"),
        "prompts of random episodes",
        label="Prompt-DT, random prompts",
        qualities=("random",),
    ),
    place=10,
)
