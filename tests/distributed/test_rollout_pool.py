"""The rollout pool: what it returns depends on the blocks alone."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.evaluation.blocks import CollectBlock
from promptdiffuser.evaluation.stepping import EpisodeStepper

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
BLOCKS = [CollectBlock(task, "random", episodes=2, seed=3) for task in range(6)]


@dataclass(frozen=True)
class DeadlyBlock:
    """Ends its actor's process, every time or only the first time."""

    inner: CollectBlock
    marker: Path | None

    def run(self, stepper: EpisodeStepper, shared: Any) -> Any:
        if self.marker is None or not self.marker.exists():
            if self.marker is not None:
                self.marker.touch()
            os._exit(1)
        return self.inner.run(stepper, shared)


def returns_by_task(num_actors: int, blocks: list[Any]) -> dict[int, list[float]]:
    pool = RolloutPool("cheetah-vel", num_actors)
    try:
        return {int(episodes.tasks[0]): episodes.returns.tolist() for _, episodes in pool.run(blocks, {})}
    finally:
        pool.close()


@pytest.fixture(scope="module")
def alone() -> dict[int, list[float]]:
    return returns_by_task(1, BLOCKS)


def test_results_do_not_depend_on_the_number_of_actors(alone: dict[int, list[float]]) -> None:
    assert returns_by_task(3, BLOCKS) == alone
    assert len(alone) == len(BLOCKS)


def test_the_block_of_an_actor_that_died_runs_again_with_the_same_result(
    alone: dict[int, list[float]], tmp_path: Path
) -> None:
    ray.cloudpickle.register_pickle_by_value(__import__("sys").modules[__name__])
    blocks = [DeadlyBlock(block, tmp_path / "died") if number == 2 else block for number, block in enumerate(BLOCKS)]
    assert returns_by_task(2, blocks) == alone
    assert (tmp_path / "died").exists()


def test_a_block_that_always_ends_its_actor_is_named() -> None:
    ray.cloudpickle.register_pickle_by_value(__import__("sys").modules[__name__])
    with pytest.raises(RuntimeError, match=r"DeadlyBlock.*ended its actor 3 times"):
        returns_by_task(1, [DeadlyBlock(BLOCKS[0], None)])


def test_two_users_may_share_the_actors() -> None:
    pool = RolloutPool("cheetah-vel", 2)

    @ray.remote(num_cpus=1)
    def use(pool: RolloutPool) -> list[float]:
        return sorted(float(episodes.returns.sum()) for _, episodes in pool.run(BLOCKS, {}))

    first, second = ray.get([use.remote(pool), use.remote(pool)])
    pool.close()
    np.testing.assert_array_equal(first, second)
