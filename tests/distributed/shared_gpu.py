"""Two trainings at the same time on a cluster that declares one GPU: `python -m tests.distributed.shared_gpu FOLDER`.

In a process of its own, because its cluster must not be the one that the other tests share. Prints, as JSON, what
connecting refuses and what the workers were given.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray.cluster_utils import Cluster
from ray.train import RunConfig
from ray.train.torch import TorchTrainer

from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.training import process_group, scaling
from promptdiffuser.errors import UserError
from promptdiffuser.experiment import ClusterConfig

TRAININGS = ("seed-0", "seed-1")
SETTINGS = ClusterConfig(train_workers=2, gpus_per_worker=0.25)


def meet(config: dict[str, Any]) -> dict[str, Any]:
    """Wait, as a worker, until the workers of every training are here."""
    here = config["folder"] / "here"
    (here / f"{config['name']}-{ray.train.get_context().get_world_rank()}").touch()
    while len(list(here.iterdir())) < len(TRAININGS) * SETTINGS.train_workers:
        time.sleep(0.1)
    ones = torch.ones(1)
    torch.distributed.all_reduce(ones)
    return {"gpus": ray.get_gpu_ids(), "sum": ones.item()}


def fit(folder: Path, name: str) -> Any:
    trainer = TorchTrainer(
        meet,
        train_loop_config={"folder": folder, "name": name},
        torch_config=process_group(SETTINGS),
        scaling_config=scaling(SETTINGS),
        run_config=RunConfig(name=name, storage_path=str(folder)),
    )
    return trainer.fit().return_value


def main(folder: Path) -> None:
    """Connect, then train."""
    # Any port: a node first waits 3 s for its agent's usual one where another cluster of this machine has it.
    head = {"num_cpus": 5, "num_gpus": 1, "include_dashboard": False, "dashboard_agent_listen_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    os.environ["RAY_ADDRESS"] = cluster.address
    refusal = None
    try:
        connect(SETTINGS)
    except UserError as error:
        refusal = str(error)
    (folder / "here").mkdir()
    with ThreadPoolExecutor() as threads:
        returned = list(threads.map(partial(fit, folder), TRAININGS))
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps({"refusal": refusal, "returned": returned}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
