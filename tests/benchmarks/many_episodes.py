"""100,000 episodes through the rollout actors into one Parquet file: nobody's memory grows with their number."""

import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.experiment import ClusterConfig
from promptdiffuser.memory import peak_gib
from promptdiffuser.rollout.blocks import evaluation_blocks
from promptdiffuser.rollout.protocol import ProtocolConfig
from promptdiffuser.rollout.results import BlockResults
from promptdiffuser.tasks import get_family
from tests.benchmarks.entry import Value
from tests.rollout.synthetic_policies import prompted, tiny_backbone, tiny_pool

COMMAND = "python -m tests.benchmarks many_episodes"
FAMILY = get_family("cheetah-vel")
PROTOCOL = ProtocolConfig(prompts=500, episodes_per_prompt=40, horizon=10)
"""On each of the five test tasks; short episodes, as their length is not what is counted here."""


def run() -> list[Value]:
    """Compare the memory at a tenth of the episodes with that at the end."""
    pool, normaliser = tiny_pool(FAMILY, sorted(index % 40 for index in range(PROTOCOL.prompts)))
    policies = prompted(tiny_backbone(FAMILY), normaliser, {"m": dict.fromkeys(FAMILY.tasks, pool.prompts)})
    blocks = evaluation_blocks(PROTOCOL.requests(FAMILY, ["m"], FAMILY.test_tasks), PROTOCOL, policies)
    connect(ClusterConfig())
    actors = RolloutPool(FAMILY.name, 2)
    early = {"driver": 0.0, "actors": 0.0}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        results = BlockResults(Path(folder) / "blocks")
        for number, (block, episodes) in enumerate(actors.run(blocks, policies)):
            results.write(block.name, episodes)
            if number == len(blocks) // 10:
                early = {"driver": peak_gib(), "actors": actors.peak_memory_gib}
        results.join([block.name for block in blocks], Path(folder) / "episodes.parquet")
        seconds = time.perf_counter() - started
        rows = pq.read_metadata(Path(folder) / "episodes.parquet").num_rows
    growth = {"driver": peak_gib() - early["driver"], "actors": actors.peak_memory_gib - early["actors"]}
    actors.close()
    return [
        Value("eval.many_episodes", rows, "episodes", COMMAND),
        Value("eval.many_episodes_seconds", seconds, "s", COMMAND),
        Value("eval.driver_memory_growth", 1024 * growth["driver"], "MiB", COMMAND),
        Value("eval.actor_memory_growth", 1024 * growth["actors"], "MiB", COMMAND),
    ]
