"""Blocks of episodes: the unit of work of a rollout actor.

A block's content is fixed by what it names (task, prompts, seeds), so results depend neither on the number of actors
nor on which of them runs a block or how often.
"""

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.windows import Segments
from promptdiffuser.evaluation.policies import PromptedPolicy
from promptdiffuser.evaluation.protocol import ProtocolConfig
from promptdiffuser.evaluation.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.seeding import seed_at
from promptdiffuser.tasks.experts import ExpertNetwork, ExpertPolicy, RandomPolicy

SIMULATOR_SEEDS = 2**31
"""Gymnasium takes seeds below this."""


@dataclass(frozen=True)
class CollectBlock:
    """Episodes of one task by the expert or by uniformly random actions."""

    task: int
    quality: str
    """`random`, or the quality of the shipped expert whose weights are published to the actors."""
    episodes: int
    seed: int

    def run(self, stepper: EpisodeStepper, experts: dict[str, ExpertNetwork]) -> Episodes:
        """Run the episodes in one batch."""
        requests = [
            EpisodeRequest(self.task, seed_at(self.seed, "collect", self.quality, self.task, number) % SIMULATOR_SEEDS)
            for number in range(self.episodes)
        ]
        if self.quality == "random":
            return stepper.run(requests, RandomPolicy(stepper.family, [request.seed for request in requests]))
        return stepper.run(requests, ExpertPolicy(stepper.family, experts[self.quality]))


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
                "seconds": (time.perf_counter() - started) / len(requests),
            }
        )
