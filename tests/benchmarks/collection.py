"""Collecting episodes on rollout actors against stepping the same environments raw, one process a core each."""

import multiprocessing
import tempfile
import time

import numpy as np

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.storage import Storage
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.experiment import ClusterConfig
from promptdiffuser.rollout.blocks import collect_blocks
from promptdiffuser.rollout.stepping import EpisodeStepper
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import demonstrators
from tests.benchmarks.entry import Ratio

COMMAND = "python -m tests.benchmarks collection"
PROCESSES = 2
EPISODES_PER_BLOCK = {"cheetah-vel": 192, "ant-dir": 96, "pick-place": 24}
BLOCKS = 4


def run() -> list[Ratio]:
    """Measure one family of each simulator; raw stepping repeats the very actions that the experts took."""
    connect(ClusterConfig())
    return [_measure(family, episodes) for family, episodes in EPISODES_PER_BLOCK.items()]


def _measure(name: str, episodes: int) -> Ratio:
    family = get_family(name)
    makers = demonstrators(family, "expert")
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage.at(folder)
        blocks = [
            collect_blocks(storage, family, t, "expert", episodes, 0)[0] for t in family.tasks[: BLOCKS + PROCESSES]
        ]
        warm_up, measured = blocks[:PROCESSES], blocks[PROCESSES:]
        pool = RolloutPool(name, PROCESSES)
        for _ in pool.run(warm_up, makers):
            pass
        started = time.perf_counter()
        steps = sum(record.steps for _, record in pool.run(measured, makers))
        ours = steps / (time.perf_counter() - started)
        pool.close()
    # A process of its own for the raw loops too, so that no one's imports or caches help the other.
    played = [b.collect(EpisodeStepper(family), makers) for b in warm_up]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as processes:
        processes.starmap(_step_raw, [(name, episodes.select(slice(4))) for episodes in played])
        raw = sum(processes.starmap(_step_raw, [(name, episodes) for episodes in played]))
    return Ratio(
        f"collect.{name}_over_raw", ours / raw, ours, raw, "steps/s", "raw stepping, one process a core", COMMAND
    )


def _step_raw(name: str, episodes: Episodes) -> float:
    """Return the steps a second of one environment that is given recorded actions."""
    family = get_family(name)
    env = family.make(int(episodes.tasks[0]))
    started = time.perf_counter()
    for seed, length, actions in zip(episodes.seeds, episodes.lengths, episodes.actions, strict=True):
        env.reset(seed=int(seed))
        for action in actions[:length]:
            env.step(action)
    return int(np.sum(episodes.lengths)) / (time.perf_counter() - started)
