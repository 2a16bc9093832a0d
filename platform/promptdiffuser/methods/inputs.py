"""Gathering what the methods are given: prompt pools of the training tasks and of each target task's few-shot set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import PromptPool, Segments, cut_pool_pieces
from promptdiffuser.learning.diffuser import Diffuser
from promptdiffuser.methods.adaptation import AdaptationInputs, Method


@dataclass(frozen=True)
class PoolBuilder:
    """Builds prompt pools of one dataset in the units of one backbone."""

    dataset: Dataset
    normaliser: Normaliser
    prompt_length: int
    context_transitions: int

    def pool(self, tasks: Sequence[int], limit: int | None = None) -> PromptPool:
        """Return the pool of some tasks, of the first `limit` episodes of each if given."""
        episodes = self.dataset.read(tasks, limit=limit)
        pieces = cut_pool_pieces(episodes, self.prompt_length, self.context_transitions)
        return PromptPool.build(pieces, self.normaliser, torch.device("cpu"))


def prompts_by_task(
    method: Method,
    tasks: Sequence[int],
    builder: PoolBuilder,
    few_shot_episodes: int,
    num_prompts: int,
    seed: int,
    diffuser_of: Callable[[int], Diffuser],
) -> dict[int, Segments]:
    """Let a method make its prompts for every target task; `diffuser_of` is asked only if the method has a diffuser."""
    training = builder.pool(builder.dataset.family.train_tasks)
    return {
        task: method.make_prompts(
            AdaptationInputs(
                task=task,
                few_shot=builder.pool([task], few_shot_episodes),
                training=training,
                diffuser=diffuser_of(task) if method.trains_diffuser else None,
                num_prompts=num_prompts,
                seed=seed,
            )
        )
        for task in tasks
    }
