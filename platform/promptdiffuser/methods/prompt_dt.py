"""Prompt-DT: segments of the target task's few-shot expert episodes, as they are (Xu et al. 2022)."""

import numpy as np

from promptdiffuser.evaluation.policies import AdaptedPolicy
from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Method


def adapt(inputs: AdaptationInputs) -> Adaptation:
    """Take the few-shot episodes' prompts in turn, so that each is used equally often."""
    pool = inputs.few_shot.pool
    prompts = pool.prompts_at(np.arange(inputs.num_prompts) % len(pool.prompts))
    return Adaptation(AdaptedPolicy(inputs.backbone, prompts))


METHOD = Method("prompt-dt", adapt, "few-shot prompts as they are")
