"""Prompt-DT: segments of the target task's few-shot expert episodes, as they are (Xu et al. 2022)."""

import numpy as np

from promptdiffuser.data.windows import Segments
from promptdiffuser.methods.adaptation import AdaptationInputs, Method


def make_prompts(inputs: AdaptationInputs) -> Segments:
    """Return the few-shot episodes' prompts in turn, so that each is used equally often."""
    return inputs.few_shot.prompts_at(np.arange(inputs.num_prompts) % len(inputs.few_shot.prompts))


METHOD = Method("prompt-dt", make_prompts)
