"""Prompt Diffuser: prompts generated from noise by a diffuser that was trained multi-task, then few-shot.

`prompt-diffuser` is the published method, conditioned on y = (returns-to-go, timesteps) of a few-shot prompt.
`prompt-diffuser-context` also sees the transitions of the few-shot episodes, because y hardly tells tasks apart.
"""

import numpy as np
import torch

from promptdiffuser.data.windows import Segments
from promptdiffuser.methods.adaptation import AdaptationInputs, Method


@torch.no_grad()
def make_prompts(inputs: AdaptationInputs) -> Segments:
    """Return generated prompts; y comes from the few-shot episodes in turn, the noise is addressed by prompt."""
    if inputs.diffuser is None:
        raise ValueError("prompt_diffuser.make_prompts needs a trained diffuser")
    few_shot = inputs.diffuser.seen(inputs.few_shot)
    num_episodes = len(few_shot.prompts)
    conditions = few_shot.prompts_at(np.arange(inputs.num_prompts) % num_episodes)
    context_BC = np.tile(np.arange(num_episodes), (inputs.num_prompts, 1))
    noise_KBX = inputs.diffuser.draw_noise(inputs.num_prompts, inputs.seed, "generate", inputs.task)
    return inputs.diffuser.generate(
        conditions, few_shot.contexts_at(context_BC), noise_KBX.to(few_shot.transitions.device)
    )


PUBLISHED = Method("prompt-diffuser", make_prompts, trains_diffuser=True)
WITH_CONTEXT = Method("prompt-diffuser-context", make_prompts, trains_diffuser=True, sees_task_context=True)
