"""Episodes and datasets of cheetah-vel for tests of other formats."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.store import Dataset, DatasetWriter
from promptdiffuser.rollout.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.experts import RandomPolicy

FAMILY = FAMILIES["cheetah-vel"]


def draw_steps(length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw one episode as the published pickles hold it."""
    generator = np.random.default_rng(seed)
    return {
        "observations": generator.normal(size=(length, FAMILY.observation_dim)),
        "actions": generator.uniform(-1.0, 1.0, (length, FAMILY.action_dim)),
        "rewards": generator.normal(size=length),
        "terminals": np.arange(length) == length - 1,
    }


def simulate(task: int, seeds: Sequence[int]) -> Episodes:
    """Run random actions in the real simulator."""
    return EpisodeStepper(FAMILY).run([EpisodeRequest(task, seed) for seed in seeds], RandomPolicy(FAMILY))


def simulated_dataset(folder: Path, tasks: Sequence[int] = (7,), episodes: int = 3) -> Dataset:
    """Write a dataset of random actions, as quality random and, to have two, as medium."""
    writer = DatasetWriter(folder, FAMILY, "a test", seed=0)
    for task in tasks:
        writer.add("random", simulate(task, range(episodes)))
        writer.add("medium", simulate(task, range(10, 10 + episodes)))
    return writer.commit()
