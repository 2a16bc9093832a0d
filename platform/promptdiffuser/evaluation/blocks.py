"""Blocks of episodes: the unit of work of a rollout actor.

A block's content is fixed by what it names (task, prompts, seeds), so results depend neither on the number of actors
nor on which of them runs a block or how often.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.manifest import FileRecord
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.parts import episodes_per_part, part_path, write_part
from promptdiffuser.data.storage import Storage
from promptdiffuser.data.windows import Segments
from promptdiffuser.evaluation.policies import PromptedPolicy
from promptdiffuser.evaluation.protocol import ProtocolConfig
from promptdiffuser.evaluation.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.seeding import seed_at
from promptdiffuser.tasks.experts import (
    MIXED_MEDIUM_SHARE,
    Demonstrator,
    Quality,
    policy_of,
)
from promptdiffuser.tasks.family import LearnedExpert, TaskFamily

SIMULATOR_SEEDS = 2**31
"""Gymnasium takes seeds below this."""


LEARNED_LOCKSTEP, SCRIPTED_LOCKSTEP = 32, 4
"""Episodes stepped at a time: a network's cost hardly grows with the batch; scripts gain nothing from it, and each
simulator of theirs takes tens of megabytes."""


def lockstep_of(family: TaskFamily) -> int:
    """Return how many episodes of a family's demonstrators are stepped at a time."""
    return LEARNED_LOCKSTEP if isinstance(family.expert, LearnedExpert) else SCRIPTED_LOCKSTEP


def demonstrate(
    stepper: EpisodeStepper, demonstrator: Demonstrator | None, requests: Sequence[EpisodeRequest]
) -> Episodes:
    """Run episodes of a demonstrator, or of random actions if there is none, batch by batch."""
    size = lockstep_of(stepper.family)
    batches = [requests[start : start + size] for start in range(0, len(requests), size)]
    return Episodes.concatenate(
        [
            stepper.run(batch, policy_of(stepper.family, demonstrator, [request.seed for request in batch]))
            for batch in batches
        ]
    )


@dataclass(frozen=True)
class CollectBlock:
    """Episodes of one task and quality that fill one file of a dataset."""

    storage: Storage
    task: int
    quality: Quality
    part: int
    first_episode: int
    """Number of the first episode within task and quality."""
    episodes: int
    seed: int

    @property
    def name(self) -> str:
        """Path of the file in the dataset."""
        return part_path(self.task, self.quality, self.part)

    def run(self, stepper: EpisodeStepper, demonstrators: dict[Quality, Demonstrator]) -> FileRecord:
        """Run the episodes and write the file from where they were made, so that no other process holds them."""
        episodes = self.collect(stepper, demonstrators)
        _, record = write_part(self.storage, stepper.family, self.quality, self.part, episodes, self.first_episode)
        return record

    def collect(self, stepper: EpisodeStepper, demonstrators: dict[Quality, Demonstrator]) -> Episodes:
        """Run the episodes, those of one demonstrator together."""
        makers: dict[Quality, list[int]] = {}
        for number in range(self.first_episode, self.first_episode + self.episodes):
            makers.setdefault(self._maker(number), []).append(number)
        parts = [
            demonstrate(
                stepper,
                None if maker == "random" else demonstrators[maker],
                [EpisodeRequest(self.task, self._seed(number)) for number in numbers],
            )
            for maker, numbers in makers.items()
        ]
        order = [number for numbers in makers.values() for number in numbers]
        return Episodes.concatenate(parts).select(np.argsort(order))

    def _maker(self, number: int) -> Quality:
        if self.quality != "mixed":
            return self.quality
        return "medium" if number % 10 < 10 * MIXED_MEDIUM_SHARE else "expert"

    def _seed(self, number: int) -> int:
        return seed_at(self.seed, "collect", self.quality, self.task, number) % SIMULATOR_SEEDS


def collect_blocks(
    storage: Storage, family: TaskFamily, task: int, quality: Quality, episodes: int, seed: int
) -> list[CollectBlock]:
    """Cut the episodes of a task and quality into blocks of bounded size."""
    size = episodes_per_part(family)
    return [
        CollectBlock(storage, task, quality, part, first, min(size, episodes - first), seed)
        for part, first in enumerate(range(0, episodes, size))
    ]


@dataclass(frozen=True)
class AdaptedPolicies:
    """A frozen backbone and the prompts that each method made for each task; published once to all actors."""

    backbone: PromptDT
    normaliser: Normaliser
    prompts: dict[str, dict[int, Segments]]
    """Method -> task -> prompts (P, K*)."""


@dataclass(frozen=True)
class EvaluationBlock:
    """All episodes of one method on one task: every prompt, `episodes_per_prompt` times."""

    method: str
    task: int
    protocol: ProtocolConfig
    seed: int

    @property
    def name(self) -> str:
        """Identify the block within an evaluation."""
        return f"{self.method}-task-{self.task}"

    def run(self, stepper: EpisodeStepper, policies: AdaptedPolicies) -> pd.DataFrame:
        """Run the episodes in one batch; one row an episode.

        The simulator's seeds do not name the method: every method meets the same initial states, so differences
        between methods are paired.
        """
        started = time.perf_counter()
        prompt_B, episode_B = (
            grid.ravel() for grid in np.indices((self.protocol.prompts, self.protocol.episodes_per_prompt))
        )
        requests = [
            EpisodeRequest(self.task, seed_at(self.seed, "evaluate", self.task, int(p), int(e)) % SIMULATOR_SEEDS)
            for p, e in zip(prompt_B, episode_B, strict=True)
        ]
        prompts = policies.prompts[self.method][self.task].select(torch.from_numpy(prompt_B))
        policy = PromptedPolicy(stepper.family, policies.backbone, policies.normaliser, prompts)
        episodes = stepper.run(requests, policy)
        return pd.DataFrame(
            {
                "method": self.method,
                "task": self.task,
                "prompt": prompt_B,
                "episode": episode_B,
                "seed": episodes.seeds,
                "return": episodes.returns,
                "length": episodes.lengths,
                "success": episodes.successes,
                "seconds": (time.perf_counter() - started) / len(requests),
            }
        )
