"""One update as one worker computes it, and as two workers that hold half of the episodes each."""

import numpy as np
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.windows import ResidentEpisodes
from promptdiffuser.training.engine import FlatParameters, LocalGradients
from promptdiffuser.training.trainings import Training, make_resident

CPU = torch.device("cpu")
STEP = 5


def shares_of_one_and_of_two_workers(training: Training, episodes: Episodes) -> list[LocalGradients]:
    """Return the share of a worker that holds every episode, then those of the two."""
    resident, pool = make_resident(training, episodes, CPU)
    numbers = np.arange(len(episodes))
    shards = [
        ResidentEpisodes.build(
            episodes.select(numbers[first::2]), numbers[first::2], training.normaliser(), CPU, len(episodes)
        )
        for first in (0, 1)
    ]
    shares = []
    for held in (resident, *shards):
        task = training.learning_task(held, pool, CPU)
        shares.append(task.local_gradients(FlatParameters(task.model), STEP))
    return shares
