"""The loops that every experiment spends its time in, each beside the straightforward way of doing the same."""

import time
from collections.abc import Callable

import numpy as np
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.plans import Planner
from promptdiffuser.data.windows import PromptPool as Pool
from promptdiffuser.data.windows import ResidentEpisodes, cut_pool_pieces
from promptdiffuser.rollout.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import RandomPolicy
from tests.benchmarks.entry import Ratio

COMMAND = "python -m tests.benchmarks hot_loops"
FAMILY = get_family("cheetah-vel")
CPU = torch.device("cpu")
BATCH = 64


def run() -> list[Ratio]:
    """Measure every pair on the same random-policy episodes and the public backbone size."""
    requests = [EpisodeRequest(task, seed) for task in FAMILY.tasks for seed in range(2)]
    episodes = EpisodeStepper(FAMILY).run(requests, RandomPolicy(FAMILY))
    normaliser = Normaliser.fit([episodes], FAMILY.return_scale)
    resident = ResidentEpisodes.build(episodes, np.arange(len(episodes)), normaliser, CPU)
    pool = Pool.build(cut_pool_pieces(episodes, 5, 16), normaliser, CPU)
    return [_gather(episodes, resident, pool)]


def _rate(work: Callable[[], object], repeats: int, per_repeat: int) -> float:
    work()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return repeats * per_repeat / (time.perf_counter() - started)


def _gather(episodes: Episodes, resident: ResidentEpisodes, pool: Pool) -> Ratio:
    plan = Planner(pool.index, BATCH, 20, ("bench",)).at(0)
    returns_to_go = episodes.returns_to_go()

    def sample_by_sample() -> list[tuple[np.ndarray, ...]]:
        # As the published loaders do it: slice and pad each window in Python.
        batch = []
        for episode, start in zip(plan.episodes, plan.starts, strict=True):
            window = slice(start, start + 20)
            parts = (episodes.observations[episode, window], episodes.actions[episode, window])
            padded = [np.concatenate([part, np.zeros((20 - len(part), part.shape[1]))]) for part in parts]
            returns = np.concatenate([returns_to_go[episode, window], np.zeros(20 - len(parts[0]))])
            batch.append((*padded, returns))
        return [tuple(np.stack(column)) for column in zip(*batch, strict=True)]

    ours = _rate(lambda: resident.segments(plan.episodes, plan.starts, 20), 200, BATCH)
    other = _rate(sample_by_sample, 50, BATCH)
    return Ratio("batch/gather", ours / other, ours, other, "windows/s", "window by window in Python", COMMAND)
