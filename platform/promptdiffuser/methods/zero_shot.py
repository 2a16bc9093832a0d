"""Prompt Diffuser without any data of the target task: the published diffuser as its multi-task training made it.

The paper reports zero-shot results and does not say where y = (returns-to-go, timesteps) comes from when there is no
prompt of the target task to take it from. Each method is a reading of that; nothing but y tells the diffuser what to
generate, so they cannot know the task better than y does.

Axes: B prompts, P prompt steps.
"""

from dataclasses import replace

import torch
from torch import Tensor

from promptdiffuser.data.windows import Segments
from promptdiffuser.diffusion.diffuser import Diffuser
from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Method, register
from promptdiffuser.methods.prompt_diffuser import noise_of, trained_diffuser
from promptdiffuser.rng import numpy_generator
from promptdiffuser.rollout.policies import AdaptedPolicy


def adapt_z1(inputs: AdaptationInputs) -> Adaptation:
    """Take y of prompts of uniformly drawn training episodes."""
    return generated(trained_diffuser(inputs), training_prompts(inputs), inputs)


def adapt_z2(inputs: AdaptationInputs) -> Adaptation:
    """Take the largest return-to-go of any training prompt at each step, at the last timesteps that prompts have."""
    prompts = inputs.training().pool.prompts
    return generated(
        trained_diffuser(inputs),
        conditions_of(prompts.returns_to_go.amax(0), prompts.timesteps.amax(0), inputs),
        inputs,
    )


def adapt_z3(inputs: AdaptationInputs) -> Adaptation:
    """Take the evaluation's target return at the first timesteps: nothing has been received of it yet."""
    num_steps = inputs.backbone.config.prompt_length
    returns_P = torch.full((num_steps,), inputs.target_return, device=inputs.device) / inputs.normaliser.return_scale
    timesteps_P = torch.arange(num_steps, device=inputs.device)
    return generated(trained_diffuser(inputs), conditions_of(returns_P, timesteps_P, inputs), inputs)


def adapt_z4(inputs: AdaptationInputs) -> Adaptation:
    """Generate without the condition, and assemble the prompts with the same y as Z1.

    A weight of 0 of classifier-free guidance is the prediction without the condition.
    """
    diffuser = trained_diffuser(inputs)
    diffuser.denoiser.config = replace(diffuser.denoiser.config, condition_weight=0.0)
    return generated(diffuser, training_prompts(inputs), inputs)


def training_prompts(inputs: AdaptationInputs) -> Segments:
    """Return the prompts of uniformly drawn training episodes."""
    pool = inputs.training().pool
    generator = numpy_generator(inputs.seed, "zero-shot", inputs.task)
    return pool.prompts_at(generator.integers(0, len(pool.prompts), inputs.num_prompts))


def conditions_of(returns_P: Tensor, timesteps_P: Tensor, inputs: AdaptationInputs) -> Segments:
    """Return one y for all prompts, in segments whose states, actions and rewards, which are no part of y, are 0."""
    returns_BP, timesteps_BP = (y_P.repeat(inputs.num_prompts, 1) for y_P in (returns_P, timesteps_P))
    shape = returns_BP.shape
    return Segments(
        returns_to_go=returns_BP,
        states=returns_P.new_zeros(*shape, inputs.family.observation_dim),
        actions=returns_P.new_zeros(*shape, inputs.family.action_dim),
        rewards=returns_P.new_zeros(shape),
        timesteps=timesteps_BP,
        valid=torch.ones_like(timesteps_BP, dtype=torch.bool),
    )


@torch.no_grad()
def generated(diffuser: Diffuser, conditions: Segments, inputs: AdaptationInputs) -> Adaptation:
    """Generate a prompt for each condition; there is no task context."""
    noise_KBX = noise_of(diffuser, inputs)
    prompts = diffuser.generate(conditions, noise_KBX.new_empty(0), noise_KBX)
    return Adaptation(AdaptedPolicy(inputs.backbone, prompts))


for reading, adapt, y, diffuser in (
    ("z1", adapt_z1, "y of training prompts", "published"),
    ("z2", adapt_z2, "y of the best training return", "published"),
    ("z3", adapt_z3, "y of the target return", "published"),
    ("z4", adapt_z4, "no condition", "condition-dropout"),
):
    register(
        Method(
            f"prompt-diffuser-{reading}",
            adapt,
            f"zero-shot, {y}",
            label=f"Prompt Diffuser, zero-shot {reading.upper()}",
            diffuser=diffuser,
            is_zero_shot=True,
        ),
        place=90,
    )
