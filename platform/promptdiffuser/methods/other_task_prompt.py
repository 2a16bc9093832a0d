"""Control: an expert prompt of another task. If it works as well, the prompt carries no task identity."""

from promptdiffuser.data.windows import Segments
from promptdiffuser.methods.adaptation import AdaptationInputs, Method
from promptdiffuser.seeding import numpy_generator


def make_prompts(inputs: AdaptationInputs) -> Segments:
    """Return prompts of uniformly drawn training episodes."""
    generator = numpy_generator(inputs.seed, "other-task-prompt", inputs.task)
    training = inputs.training_pool()
    return training.prompts_at(generator.integers(0, len(training.prompts), inputs.num_prompts))


METHOD = Method("other-task-prompt", make_prompts)
