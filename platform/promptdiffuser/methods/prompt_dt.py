"""Prompt-DT: segments of the target task's few-shot expert episodes, as they are (Xu et al. 2022)."""

from promptdiffuser.evaluation.policies import AdaptedPolicy
from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Method


def adapt(inputs: AdaptationInputs) -> Adaptation:
    """Take the few-shot episodes' prompts in turn, so that each is used equally often."""
    return Adaptation(AdaptedPolicy(inputs.backbone, inputs.few_shot_prompts()))


METHOD = Method("prompt-dt", adapt, "few-shot prompts as they are")
