"""The rollout pool: what it returns depends on the blocks alone."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from promptdiffuser.data.manifest import FileRecord
from promptdiffuser.data.storage import Storage
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.evaluation.blocks import CollectBlock
from promptdiffuser.evaluation.stepping import EpisodeStepper

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def blocks_in(folder: Path) -> list[CollectBlock]:
    storage = Storage.at(folder)
    return [CollectBlock(storage, task, "random", 0, first_episode=0, episodes=2, seed=3) for task in range(6)]


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


def records_by_task(num_actors: int, blocks: list[Any]) -> dict[int, FileRecord]:
    """Return what each block wrote; a record holds the checksum of its file."""
    pool = RolloutPool("cheetah-vel", num_actors)
    try:
        return {record.task: record for _, record in pool.run(blocks, {})}
    finally:
        pool.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, FileRecord]:
    return records_by_task(1, blocks_in(tmp_path_factory.mktemp("alone")))


def test_results_do_not_depend_on_the_number_of_actors(alone: dict[int, FileRecord], tmp_path: Path) -> None:
    blocks = blocks_in(tmp_path)
    assert records_by_task(3, blocks) == alone
    assert sorted(alone) == list(range(6))
    assert all(block.storage.sha256(block.name) == alone[block.task].sha256 for block in blocks)


def test_the_block_of_an_actor_that_died_runs_again_with_the_same_result(
    alone: dict[int, FileRecord], tmp_path: Path
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    blocks: list[Any] = [*blocks_in(tmp_path)]
    blocks[2] = DeadlyBlock(blocks[2], tmp_path / "died")
    assert records_by_task(2, blocks) == alone
    assert (tmp_path / "died").exists()


def test_a_block_that_always_ends_its_actor_is_named(tmp_path: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.raises(RuntimeError, match=r"DeadlyBlock.*ended its actor 3 times"):
        records_by_task(1, [DeadlyBlock(blocks_in(tmp_path)[0], None)])


def test_two_users_may_share_the_actors(alone: dict[int, FileRecord], tmp_path: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    pool = RolloutPool("cheetah-vel", 2)

    @ray.remote(num_cpus=1)
    def use(pool: RolloutPool, blocks: list[CollectBlock]) -> dict[int, FileRecord]:
        return {record.task: record for _, record in pool.run(blocks, {})}

    both = ray.get([use.remote(pool, blocks_in(tmp_path / name)) for name in ("first", "second")])
    pool.close()
    assert both == [alone, alone]
