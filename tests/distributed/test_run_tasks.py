"""Independent pieces of work as Ray tasks: every result with its item, one thread each, and the first error ends it."""

import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray
import torch

from promptdiffuser.distributed.tasks import run_tasks
from promptdiffuser.errors import UserError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module", autouse=True)
def by_value() -> Iterator[None]:
    """Ray's workers cannot import tests."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class RefusedError(Exception):
    """Comes back from a worker as what it is."""


def squared_here(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def fail_at(bad: int, number: int) -> int:
    if number == bad:
        raise RefusedError(f"there is no {number}")
    return number


def refuse(task: int) -> None:
    raise UserError(f"there is no task {task}; choose another")


def threads(taken_before: int) -> int:
    before = torch.get_num_threads()
    torch.set_num_threads(taken_before)  # what an earlier piece of work may leave in a process that is used again
    return before


def die_once(marker: Path, number: int) -> int:
    if number == 1 and not marker.exists():
        marker.touch()
        os._exit(1)
    return number + 10


def span(number: int) -> tuple[float, float]:
    began = time.monotonic()
    time.sleep(0.3)
    return began, time.monotonic()


def test_every_item_comes_with_its_result_from_another_process() -> None:
    results = list(run_tasks(squared_here, [3, 1, 2, 3]))
    assert sorted((item, value) for item, (value, _) in results) == [(1, 1), (2, 4), (3, 9), (3, 9)]
    assert os.getpid() not in {process for _, (_, process) in results}


def test_no_items_are_no_results() -> None:
    assert list(run_tasks(squared_here, [])) == []


def test_work_has_one_thread_whatever_its_process_did_before() -> None:
    assert {result for _, result in run_tasks(threads, [3] * 6)} == {1}


def test_no_more_run_at_a_time_than_there_are_cores() -> None:
    cores = os.cpu_count() or 1
    if ray.cluster_resources()["CPU"] <= cores:
        pytest.skip("the session's cluster does not declare more CPUs than there are cores")
    spans = [result for _, result in run_tasks(span, list(range(4 * cores)))]
    at_a_time = [sum(began <= start < ended for began, ended in spans) for start, _ in spans]
    assert max(at_a_time) == cores


def test_the_first_error_ends_the_iteration_as_what_it_is() -> None:
    results = run_tasks(partial(fail_at, 7), [7])
    with pytest.raises(RefusedError, match="there is no 7"):
        next(results)
    assert next(results, "over") == "over"


def test_what_the_user_can_repair_comes_back_as_its_one_line() -> None:
    with pytest.raises(UserError) as refusal:
        list(run_tasks(refuse, [3]))
    assert str(refusal.value) == "there is no task 3; choose another"


def test_work_whose_process_died_runs_again(tmp_path: Path) -> None:
    results = dict(run_tasks(partial(die_once, tmp_path / "died"), [0, 1, 2]))
    assert results == {0: 10, 1: 11, 2: 12}
    assert (tmp_path / "died").exists()
