"""Retrieval: the prompts of the training task whose transitions are nearest the few-shot transitions.

Tasks are compared by the energy distance between their sets of normalised (state, action, reward). It has nothing to
fit, needs no correspondence between transitions, and is 0 only for equal distributions.

Axes: X and Y transitions of two sets, F features of a transition.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from promptdiffuser.data.windows import PromptPool
from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Method, register
from promptdiffuser.rollout.policies import AdaptedPolicy


@dataclass(frozen=True)
class NearestPromptConfig:
    """How training tasks are compared with the target task."""

    episodes: int = 30
    """First episodes of each training task whose transitions are compared; time grows by its square."""

    def __post_init__(self) -> None:
        """Refuse a comparison with nothing."""
        if self.episodes < 1:
            raise ValueError(f"adaptation.nearest_prompt.episodes must be at least 1, got {self.episodes}")


def adapt(inputs: AdaptationInputs) -> Adaptation:
    """Take the nearest task's prompts in turn."""
    config: NearestPromptConfig = inputs.settings
    training = inputs.training().pool
    task = nearest_task(inputs.few_shot.pool, training, config.episodes)
    prompts = training.select(training.index.tasks == task).in_turn(inputs.num_prompts)
    return Adaptation(AdaptedPolicy(inputs.backbone, prompts))


def nearest_task(few_shot: PromptPool, training: PromptPool, num_episodes: int) -> int:
    """Return the training task nearest the few-shot set, compared by the first `num_episodes` episodes of each."""
    tasks = training.index.task_ids
    first, count = training.index.pool_of(tasks)
    distances = [
        energy_distance(few_shot.transitions.flatten(0, 1), training.transitions[begin:end].flatten(0, 1))
        for begin, end in zip(first, first + np.minimum(count, num_episodes), strict=True)
    ]
    return int(tasks[int(torch.stack(distances).argmin())])


def energy_distance(left_XF: Tensor, right_YF: Tensor) -> Tensor:
    """Return 2 E|x - y| - E|x - x'| - E|y - y'| of two sets (Székely & Rizzo 2013, eq. 6.1), a scalar, at least 0."""
    between, left, right = (
        torch.cdist(*pair).mean() for pair in ((left_XF, right_YF), (left_XF, left_XF), (right_YF, right_YF))
    )
    return 2 * between - left - right


register(
    Method(
        "nearest-prompt",
        adapt,
        "prompts of the most similar training task",
        label="Nearest task's prompts",
        settings=NearestPromptConfig,
    ),
    place=30,
)
