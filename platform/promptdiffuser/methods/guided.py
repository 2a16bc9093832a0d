"""Prompt Diffuser guided at sampling time: the few-shot loss moves the prompts while they are generated.

The diffuser is not trained on the target task; all that is fitted to it are the prompts' own states and actions.
"""

import torch

from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Cost, Method, register
from promptdiffuser.methods.prompt_diffuser import noise_of, trained_diffuser
from promptdiffuser.methods.shared.steering import FewShotSteering, SamplingGuidanceConfig
from promptdiffuser.rollout.policies import AdaptedPolicy


@torch.no_grad()
def adapt(inputs: AdaptationInputs) -> Adaptation:
    """Generate from the same conditions and noise as without guidance."""
    diffuser, few_shot = trained_diffuser(inputs), inputs.few_shot
    conditions, transitions_BMF = diffuser.conditions_in_turn(few_shot.pool, inputs.num_prompts)
    steering = FewShotSteering(
        diffuser,
        conditions,
        inputs.backbone,
        few_shot.windows,
        few_shot.pool.index,
        inputs.settings,
        (inputs.seed, "guided", inputs.task),
    )
    noise_KBX = noise_of(diffuser, inputs)
    prompts = diffuser.generate(conditions, transitions_BMF, noise_KBX, steer=steering)
    numbers = prompts.states[0].numel() + prompts.actions[0].numel()
    return Adaptation(AdaptedPolicy(inputs.backbone, prompts), Cost(numbers, steering.gradient_steps))


register(
    Method(
        "prompt-diffuser-guided",
        adapt,
        "task context, few-shot loss guides generation alone",
        label="Prompt Diffuser + task context, guided sampling",
        settings=SamplingGuidanceConfig,
        section="guided",
        diffuser="context",
    ),
    place=110,
)
