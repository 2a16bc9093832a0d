"""Blocks of episodes: the unit of work of a rollout actor.

A block's content is fixed by what it names (task, prompts, seeds), so results depend neither on the number of actors
nor on which of them runs a block or how often.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.manifest import FileRecord
from promptdiffuser.data.parts import episodes_per_part, part_path, write_part
from promptdiffuser.data.storage import Storage
from promptdiffuser.rng import SIMULATOR_SEEDS, seed_at
from promptdiffuser.rollout.policies import AdaptedPolicies, PromptedPolicy
from promptdiffuser.rollout.protocol import EvaluationRequest, ProtocolConfig
from promptdiffuser.rollout.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.tasks.experts import (
    MIXED_MEDIUM_SHARE,
    Demonstrator,
    Quality,
    policy_of,
)
from promptdiffuser.tasks.family import LearnedExpert, TaskFamily

LEARNED_LOCKSTEP, SCRIPTED_LOCKSTEP = 32, 4
"""Episodes of demonstrators stepped at a time: a network's cost hardly grows with the batch; scripts gain nothing from
it, and each simulator of theirs takes tens of megabytes."""
EPISODES_PER_BLOCK = 64
WINDOW_LOCKSTEP, CACHED_LOCKSTEP = 32, 64
"""Episodes of adapted policies stepped at a time. More would push the tokens of a window out of a core's cache, fewer
would leave its arithmetic idle; both are part of what a block is, because the order of sums depends on them."""


def lockstep_of(family: TaskFamily) -> int:
    """Return how many episodes of a family's demonstrators are stepped at a time."""
    return LEARNED_LOCKSTEP if isinstance(family.expert, LearnedExpert) else SCRIPTED_LOCKSTEP


def demonstrate(
    stepper: EpisodeStepper, demonstrator: Demonstrator | None, requests: Sequence[EpisodeRequest]
) -> Episodes:
    """Run episodes of a demonstrator, or of random actions if there is none."""
    family = stepper.family
    return stepper.run(requests, policy_of(family, demonstrator), lockstep_of(family))


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
class EvaluationBlock:
    """A fixed part of an evaluation's episodes, of one method and one backbone."""

    number: int
    """Place of the block in the evaluation."""
    requests: tuple[EvaluationRequest, ...]
    protocol: ProtocolConfig

    @property
    def method(self) -> str:
        """The method whose episodes these are."""
        return self.requests[0].method

    @property
    def name(self) -> str:
        """Identify the block within an evaluation."""
        return f"block-{self.number:06d}"

    def run(self, stepper: EpisodeStepper, policies: AdaptedPolicies) -> pd.DataFrame:
        """Run the episodes; one row an episode, with the columns that `statistics.scores` explains.

        The return of an episode whose simulator lost the state is not a number, and `diverged` says so.
        """
        started = time.perf_counter()
        backbone = policies.of(self.requests[0]).backbone
        policy = PromptedPolicy(stepper.family, policies, backbone, self.protocol.precision, stepper.device)
        is_cached = backbone.config.attention == "banded"
        lockstep = min(CACHED_LOCKSTEP if is_cached else WINDOW_LOCKSTEP, stepper.family.max_simulators)
        rollouts = stepper.roll_out(self.requests, policy, lockstep, self.protocol.horizon or None)
        episodes = rollouts.episodes
        return pd.DataFrame(
            {
                "method": [request.method for request in self.requests],
                "task": episodes.tasks,
                "prompt": [request.prompt for request in self.requests],
                "prompt_source": [policies.of(r).prompt_sources[r.prompt] for r in self.requests],
                "episode": [request.episode for request in self.requests],
                "target_return": [request.target_return for request in self.requests],
                "seed": episodes.seeds,
                "start": episodes.seeds if stepper.family.random_start else np.zeros_like(episodes.seeds),
                "return": np.where(rollouts.diverged_N, np.nan, episodes.returns),
                "length": episodes.lengths,
                "success": episodes.successes,
                "diverged": rollouts.diverged_N,
                "seconds": (time.perf_counter() - started) / len(self.requests),
            }
        )


@dataclass(frozen=True)
class BlockOfMany:
    """A block of one of several evaluations that are run together."""

    evaluation: int
    """Place of the evaluation among them."""
    block: EvaluationBlock

    def run(self, stepper: EpisodeStepper, policies: Sequence[AdaptedPolicies]) -> pd.DataFrame:
        """Run the episodes by the policies of their evaluation."""
        return self.block.run(stepper, policies[self.evaluation])


def evaluation_blocks(
    requests: Sequence[EvaluationRequest], protocol: ProtocolConfig, policies: AdaptedPolicies
) -> list[EvaluationBlock]:
    """Cut an evaluation's episodes into blocks; tasks are mixed where they share a backbone."""
    pieces = [
        tuple(of_backbone[first : first + EPISODES_PER_BLOCK])
        for _, group in itertools.groupby(requests, lambda r: (r.method, id(policies.of(r).backbone)))
        for of_backbone in [list(group)]
        for first in range(0, len(of_backbone), EPISODES_PER_BLOCK)
    ]
    return [EvaluationBlock(number, piece, protocol) for number, piece in enumerate(pieces)]
