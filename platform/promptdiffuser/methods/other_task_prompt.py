"""Control: prompts of training tasks other than the target task.

If they work as well as its own, the prompt carries no task identity.
"""

from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Method, register
from promptdiffuser.rng import numpy_generator
from promptdiffuser.rollout.policies import AdaptedPolicy


def adapt(inputs: AdaptationInputs) -> Adaptation:
    """Draw training episodes uniformly and take their prompts."""
    generator = numpy_generator(inputs.seed, "other-task-prompt", inputs.task)
    training = inputs.training().pool
    prompts = training.prompts_at(generator.integers(0, len(training.prompts), inputs.num_prompts))
    return Adaptation(AdaptedPolicy(inputs.backbone, prompts))


register(
    Method(
        "other-task-prompt", adapt, "prompts of other tasks: a control", label="Another task's prompt", colour="#c77c00"
    ),
    place=20,
)
