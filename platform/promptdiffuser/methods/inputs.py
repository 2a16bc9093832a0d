"""Gathering what the methods are given: prompt pools of the training tasks and of each target task's few-shot set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import PromptPool, Segments, cut_pool_pieces
from promptdiffuser.learning.diffuser import Diffuser
from promptdiffuser.methods.adaptation import AdaptationInputs, Method
from promptdiffuser.tasks.experts import Quality


@dataclass(frozen=True)
class PoolBuilder:
    """Builds prompt pools of one dataset in the units of one backbone."""

    dataset: Dataset
    normaliser: Normaliser
    prompt_length: int
    context_transitions: int
    quality: Quality = "expert"
    """Quality of the episodes that the training pool holds."""

    def training_pool(self) -> PromptPool:
        """Return the pool of all episodes of the training tasks."""
        return self._pool(self.dataset.read(self.dataset.family.train_tasks, self.quality))

    def few_shot_pool(self, tasks: Sequence[int], few_shot: FewShotConfig) -> PromptPool:
        """Return the pool of the few-shot sets of some target tasks."""
        return self._pool(self.dataset.few_shot(tasks, few_shot))

    def _pool(self, episodes: Episodes) -> PromptPool:
        pieces = cut_pool_pieces(episodes, self.prompt_length, self.context_transitions)
        return PromptPool.build(pieces, self.normaliser, torch.device("cpu"))


def prompts_by_task(
    method: Method,
    tasks: Sequence[int],
    builder: PoolBuilder,
    few_shot: FewShotConfig,
    num_prompts: int,
    seed: int,
    diffuser_of: Callable[[int], Diffuser],
) -> dict[int, Segments]:
    """Let a method make its prompts for every target task; `diffuser_of` is asked only if the method has a diffuser."""
    training_pool = cache(builder.training_pool)
    return {
        task: method.make_prompts(
            AdaptationInputs(
                task=task,
                few_shot=builder.few_shot_pool([task], few_shot),
                training_pool=training_pool,
                diffuser=diffuser_of(task) if method.trains_diffuser else None,
                num_prompts=num_prompts,
                seed=seed,
            )
        )
        for task in tasks
    }
