"""Prompt Diffuser: prompts generated from noise by a diffuser that was trained multi-task, then few-shot.

`prompt-diffuser` is the published method, conditioned on y = (returns-to-go, timesteps) of a few-shot prompt.
`prompt-diffuser-context` also sees the transitions of the few-shot episodes, because y hardly tells tasks apart. The
paper's ablation arms differ from it in the losses that its diffuser follows, in both stages; `-optimised` in the
prompts that its diffuser learns.
"""

import torch
from torch import Tensor

from promptdiffuser.data.plans import Address
from promptdiffuser.data.windows import Segments
from promptdiffuser.diffusion.diffuser import Diffuser
from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Cost, Method, register
from promptdiffuser.rollout.policies import AdaptedPolicy
from promptdiffuser.training.model_folders import load_diffuser
from promptdiffuser.training.trainings import train


def adapt(inputs: AdaptationInputs) -> Adaptation:
    """Make the few-shot updates, if any, and generate."""
    diffuser = adapted_diffuser(inputs)
    return Adaptation(AdaptedPolicy(inputs.backbone, generate(diffuser, inputs)), cost_of(diffuser, inputs))


def adapted_diffuser(inputs: AdaptationInputs) -> Diffuser:
    """Return the diffuser after its few-shot stage on the task, or as it is if there is none."""
    training = inputs.few_shot_training
    if training is None:
        return trained_diffuser(inputs)
    task = training.learning_task(inputs.few_shot.windows, inputs.few_shot.pool, inputs.device)
    train(training, task, inputs.folder, on_checkpoint=inputs.on_history)
    return load_diffuser(inputs.folder / "model", inputs.family, inputs.device)


def trained_diffuser(inputs: AdaptationInputs) -> Diffuser:
    """Return the diffuser as the multi-task training made it."""
    if inputs.diffuser_folder is None:
        raise ValueError("prompt_diffuser needs the folder of a trained diffuser")
    return load_diffuser(inputs.diffuser_folder, inputs.family, inputs.device)


def cost_of(diffuser: Diffuser, inputs: AdaptationInputs) -> Cost:
    """Return what the few-shot stage changed and how many updates it made; nothing without one."""
    if inputs.few_shot_training is None:
        return Cost()
    parameters = sum(parameter.numel() for parameter in diffuser.denoiser.parameters())
    return Cost(tunable_parameters=parameters, gradient_steps=inputs.few_shot_training.optimisation.steps)


@torch.no_grad()
def generate(diffuser: Diffuser, inputs: AdaptationInputs) -> Segments:
    """Return a prompt for each few-shot episode in turn, from noise of its own."""
    conditions = diffuser.conditions_in_turn(inputs.few_shot.pool, inputs.num_prompts)
    return diffuser.generate(*conditions, noise_of(diffuser, inputs))


def noise_of(diffuser: Diffuser, inputs: AdaptationInputs, candidate: int = 0) -> Tensor:
    """Return the noise (K, B, X) of a task's prompts, or of another candidate for each of them."""
    address = noise_address(inputs.seed, inputs.task, candidate)
    return diffuser.draw_noise(inputs.num_prompts, *address).to(inputs.device)


def noise_address(seed: int, task: int, candidate: int = 0) -> Address:
    """Return where the noise of a task's prompts lives."""
    return seed, "generate", task, candidate


register(
    Method(
        "prompt-diffuser",
        adapt,
        "the published method",
        label="Prompt Diffuser",
        colour="#0072b2",
        diffuser="published",
        few_shot_updates=True,
    ),
    place=80,
)
register(
    Method(
        "prompt-diffuser-context",
        adapt,
        "it with a task context",
        label="Prompt Diffuser + task context",
        colour="#009e73",
        diffuser="context",
        few_shot_updates=True,
    ),
    place=80,
)
register(
    Method(
        "prompt-diffuser-multi-task",
        adapt,
        "task context, no training on the target task",
        label="Prompt Diffuser + task context, no updates",
        diffuser="context",
    ),
    place=80,
)
for arm, label, losses in (
    ("dm", "ab:dm", "denoising loss alone (ab:dm)"),
    ("dt", "ab:dt", "downstream loss alone (ab:dt)"),
    ("sum", "ab:all", "sum of both gradients (ab:all)"),
):
    register(
        Method(
            f"prompt-diffuser-{arm}",
            adapt,
            f"task context, {losses}",
            label=f"Prompt Diffuser + task context, {label}",
            diffuser=f"context-{arm}",
            few_shot_updates=True,
        ),
        place=80,
    )
register(
    Method(
        "prompt-diffuser-optimised",
        adapt,
        "task context, learnt from tuned training prompts, no training on the target task",
        label="Prompt Diffuser + task context, tuned training prompts",
        diffuser="context-optimised",
    ),
    place=80,
)
