"""An elastic training on a cluster of two nodes that loses one of them and, if asked to, is given another.

python -m tests.distributed.elastic DATASET FOLDER {resident,streaming} [grow]

In a process of its own, because its cluster must not be the one that the other tests share. FOLDER/marks then names how
many workers began at which update.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import ray
import torch
from ray.cluster_utils import Cluster

from promptdiffuser.data.plans import RoundsConfig
from promptdiffuser.data.store import Dataset, open_dataset
from promptdiffuser.data.windows import PromptPool, WindowSource
from promptdiffuser.distributed import training as ray_training
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.experiment import ClusterConfig
from promptdiffuser.tracking.store import prepare
from promptdiffuser.training.backbone_objective import BackboneLearning
from promptdiffuser.training.trainings import BackboneTraining
from tests.distributed.small_training import TASKS, small_training

WHOLE, SHRUNK, GROWN = "2-from-update-0", "1-from-update-4", "2-from-update-8"
"""Marks: with both nodes; after the first checkpoint, without one; after the second, with the new one."""


def training_of(dataset: Dataset) -> BackboneTraining:
    largest = max(record.steps for _, record in dataset.files(TASKS))
    return small_training(dataset, RoundsConfig(env_steps=2 * largest, updates=6))


@dataclass(frozen=True)
class WatchedTraining(BackboneTraining):
    """A training whose workers leave a mark where they begin, and that changes of the cluster meet in the middle."""

    marks: Path = Path()
    waits: Mapping[int, str] = field(default_factory=dict)
    """Updates at which it stands still until a mark is there."""

    def learning_task(self, windows: WindowSource, pool: PromptPool, device: torch.device) -> BackboneLearning:
        task = super().learning_task(windows, pool, device)
        local_gradients, begun_at = task.local_gradients, []

        def watched(parameters, step):
            if not begun_at:
                begun_at.append(step)
                (self.marks / f"{ray.train.get_context().get_world_size()}-from-update-{step}").touch()
            while step in self.waits and not (self.marks / self.waits[step]).exists():
                time.sleep(0.1)
            return local_gradients(parameters, step)

        task.local_gradients = watched
        return task


def main(location: str, folder: Path, data: str, *grow: str) -> None:
    """Train; a node leaves after the first checkpoint, another may come once the training has gone on without it."""
    # A node has room for one worker and for nothing else: the windows must be cut without a CPU to spare.
    settings = ClusterConfig(train_workers=1, max_train_workers=2, cpus_per_worker=2, data=data)
    # Any port: a node first waits 3 s for its agent's usual one where another cluster of this machine has it.
    head = {"num_cpus": 2, "include_dashboard": False, "dashboard_agent_listen_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    leaving = cluster.add_node(num_cpus=2)
    # Ray Train first starts as many workers as before and waits this long for the node that has left, a minute by
    # default; and it looks for new nodes once in a minute.
    os.environ |= {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3"}
    scaling = ray_training.scaling
    ray_training.scaling = lambda config: dataclasses.replace(scaling(config), elastic_resize_monitor_interval_s=1.0)
    connect(settings)
    dataset, marks = open_dataset(location), folder / "marks"
    marks.mkdir()
    waits = {6: SHRUNK} | ({10: GROWN} if grow else {})
    training = WatchedTraining(**vars(training_of(dataset)), marks=marks, waits=waits)
    run = prepare(f"sqlite:///{folder}/mlflow.db", "test").run("test", "test", None, {})
    job = ray_training.TrainJob(training, dataset, TASKS, "expert", folder, run)
    # Nodes can be added in the main thread alone.
    trained = ThreadPoolExecutor(1).submit(ray_training.train_on_cluster, job, settings)
    wait_for((folder / "checkpoints" / "step-00000004").exists, trained)
    cluster.remove_node(leaving)
    if grow:
        wait_for((marks / SHRUNK).exists, trained)
        cluster.add_node(num_cpus=2)
    trained.result()
    ray.shutdown()
    cluster.shutdown()


def wait_for(happened: Callable[[], bool], trained: Future[None]) -> None:
    while not happened():
        if trained.done():
            raise RuntimeError("the training has ended too early") from trained.exception()
        time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
