"""Control: the mean of the few-shot prompts, step by step. What a generator without any spread would say."""

from dataclasses import replace

import torch

from promptdiffuser.data.windows import Segments
from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Method, register
from promptdiffuser.rollout.policies import AdaptedPolicy


def adapt(inputs: AdaptationInputs) -> Adaptation:
    """Use one prompt throughout."""
    mean = mean_prompt(inputs.few_shot.pool.prompts)
    always_B = torch.zeros(inputs.num_prompts, dtype=torch.int64, device=inputs.device)
    return Adaptation(AdaptedPolicy(inputs.backbone, mean.select(always_B)))


def mean_prompt(prompts: Segments) -> Segments:
    """Return the mean (1, K*) of prompts (B, K*); its timesteps are the mean ones rounded down, so consecutive too."""
    return replace(
        prompts.select(slice(1)),
        returns_to_go=prompts.returns_to_go.mean(0, keepdim=True),
        states=prompts.states.mean(0, keepdim=True),
        actions=prompts.actions.mean(0, keepdim=True),
        rewards=prompts.rewards.mean(0, keepdim=True),
        timesteps=prompts.timesteps.sum(0, keepdim=True) // len(prompts),
    )


register(Method("mean-prompt", adapt, "the mean of the few-shot prompts", label="Mean prompt"), place=40)
