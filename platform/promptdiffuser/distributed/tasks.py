"""Independent pieces of work, one Ray task each."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayTaskError

from promptdiffuser.distributed.cluster import cores_of_overcommitted

TASK_RETRIES = 3
"""Times a piece of work is run again after the death of its process."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_tasks(
    work: Callable[[Item], Result], items: Sequence[Item], num_gpus: float = 0.0
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, result) as they finish, each on one CPU and a share of a GPU; the first error ends the iteration.

    No more run at a time than there are cores: two that share a core get less done than one after the other, as their
    data do not fit its caches together.
    """
    remote: Any = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=TASK_RETRIES)(_work_on_one_thread)
    reference, waiting, running = ray.put(work), iter(items), dict[Any, Item]()
    at_a_time = cores_of_overcommitted() or len(items)
    while True:
        running |= {remote.remote(reference, item): item for item in islice(waiting, at_a_time - len(running))}
        if not running:
            return
        (finished,), _ = ray.wait(list(running), num_returns=1)
        item = running.pop(finished)
        try:
            result = ray.get(finished)
        except RayTaskError as error:
            # Ray's own message is the remote traceback; a cause that is a `UserError` speaks for itself.
            raise error.cause from error
        yield item, result


def task_device() -> torch.device:
    """Return the device of the piece of work that calls it."""
    return torch.device("cuda" if ray.get_gpu_ids() else "cpu")


def _work_on_one_thread(work: Callable[[Item], Result], item: Item) -> Result:
    # Ray leaves the number of threads to the worker process it happens to reuse, and sums depend on it in the last bit.
    torch.set_num_threads(1)
    return work(item)
