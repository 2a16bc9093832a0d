"""Connecting to a Ray cluster, and refusing work that does not fit it before it can hang."""

import logging
import os
from typing import Any

import ray

from promptdiffuser.errors import UserError

# Ray Data tasks run beside the Train workers and read for them; without room for one the workers wait for ever.
CPUS_FOR_DATA = 1


def connect(local_cpus: int) -> None:
    """Join the cluster that RAY_ADDRESS names (Ray jobs set it), or start a local one for this process.

    Raises:
        UserError: The named cluster does not answer.
    """
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        # Rollout and training batches are small; half of Ray's default store leaves memory to the workers.
        ray.init(num_cpus=local_cpus, include_dashboard=False, object_store_memory=2**30, **quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except ConnectionError as error:
        raise UserError(f"no Ray cluster answers at RAY_ADDRESS={address}; start one or unset it") from error


def require_cpus(needed: int, purpose: str) -> None:
    """Refuse a job that the cluster can never schedule.

    Raises:
        UserError: Says how many CPUs are needed for what, and how many there are.
    """
    available = int(ray.cluster_resources().get("CPU", 0))
    if available < needed:
        raise UserError(
            f"{purpose} needs {needed} CPUs, the Ray cluster has {available}; lower --cluster.train-workers or "
            "--cluster.rollout-actors, or raise --cluster.local-cpus (logical CPUs may exceed the cores)"
        )
