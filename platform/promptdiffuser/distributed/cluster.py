"""Connecting to a Ray cluster, and refusing an experiment that does not fit it before any work starts."""

import logging
import os
from typing import Any

import ray

from promptdiffuser.errors import UserError
from promptdiffuser.experiment import ClusterConfig

# Ray Data tasks run beside the Train workers and read for them; without room for one the workers wait for ever.
CPUS_FOR_DATA = 1
LOCAL_OBJECT_STORE_BYTES = 2**30


def connect(cluster: ClusterConfig, trials: int = 0) -> None:
    """Join the cluster that RAY_ADDRESS names (Ray jobs set it), or start a local one for this process.

    Args:
        cluster: What the experiment takes of it; checked for all of its stages, whichever comes first.
        trials: Tune trials that run beside the rollout actors, one CPU each.

    Raises:
        UserError: The named cluster does not answer, or the experiment needs more CPUs than there are.
    """
    if ray.is_initialized():
        _require_cpus(cluster, trials, int(ray.cluster_resources().get("CPU", 0)))
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        _require_cpus(cluster, trials, cluster.local_cpus)
        ray.init(
            "local",  # never an unrelated cluster that happens to run on this machine
            num_cpus=cluster.local_cpus,
            include_dashboard=False,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            **quiet,
        )
        return
    try:
        ray.init(address, **quiet)
    except ConnectionError as error:
        raise UserError(f"no Ray cluster answers at RAY_ADDRESS={address}; start one or unset it") from error
    _require_cpus(cluster, trials, int(ray.cluster_resources().get("CPU", 0)))


def _require_cpus(cluster: ClusterConfig, trials: int, available: int) -> None:
    training, rollouts = cluster.train_workers + CPUS_FOR_DATA, cluster.rollout_actors + trials
    if available < max(training, rollouts):
        raise UserError(
            f"the experiment needs {max(training, rollouts)} CPUs ({training} to train, {rollouts} to roll out), the "
            f"Ray cluster has {available}; lower --cluster.train-workers or --cluster.rollout-actors, or raise "
            "--cluster.local-cpus (logical CPUs may exceed the cores)"
        )
