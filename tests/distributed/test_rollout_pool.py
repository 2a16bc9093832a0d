"""The rollout pool: what it returns depends on the blocks alone."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray
import torch

from promptdiffuser.data.manifest import FileRecord
from promptdiffuser.data.storage import Storage
from promptdiffuser.distributed import rollouts
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.errors import UserError
from promptdiffuser.rollout.blocks import CollectBlock, EvaluationBlock
from promptdiffuser.rollout.protocol import ProtocolConfig
from promptdiffuser.rollout.stepping import EpisodeStepper
from promptdiffuser.tasks import get_family
from tests.rollout.synthetic_policies import prompted, tiny_backbone, tiny_pool

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def blocks_in(folder: Path) -> list[CollectBlock]:
    storage = Storage.at(folder)
    return [CollectBlock(storage, task, "random", 0, first_episode=0, episodes=2, seed=3) for task in range(6)]


@dataclass(frozen=True)
class MisbehavingBlock:
    """Misbehaves every time or, with a marker, only the first time."""

    inner: CollectBlock
    marker: Path | None

    def run(self, stepper: EpisodeStepper, shared: Any) -> Any:
        if self.marker is None or not self.marker.exists():
            if self.marker is not None:
                self.marker.touch()
            self.misbehave()
        return self.inner.run(stepper, shared)

    def misbehave(self) -> None:
        raise NotImplementedError


class DeadlyBlock(MisbehavingBlock):
    """Ends its actor's process."""

    def misbehave(self) -> None:
        os._exit(1)


class StoppedBlock(MisbehavingBlock):
    """Stops its actor's process, as a simulator that hangs."""

    def misbehave(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)


def records_by_task(num_actors: int, blocks: list[Any]) -> dict[int, FileRecord]:
    """Return what each block wrote; a record holds the checksum of its file."""
    with RolloutPool("cheetah-vel", num_actors) as pool:
        return {record.task: record for _, record in pool.run(blocks, {})}


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


@pytest.mark.parametrize("num_actors", [1, 2, 4])
def test_a_block_that_always_ends_its_actor_is_named_on_any_number_of_actors(num_actors: int, tmp_path: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        with pytest.raises(RuntimeError, match=r"DeadlyBlock.*ended its actor 3 times$"):
            records_by_task(num_actors, [DeadlyBlock(blocks_in(tmp_path)[0], None)])
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_actors_that_cannot_start_are_not_waited_for(tmp_path: Path) -> None:
    with (
        RolloutPool("no-such-family", 2) as pool,
        pytest.raises(RuntimeError, match="no rollout actor can be started"),
    ):
        list(pool.run(blocks_in(tmp_path), {}))


def test_actors_that_die_while_starting_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(rollouts, "RolloutActor", StillbornActor)
    monkeypatch.setattr(rollouts, "START_POLL_S", 0.2)
    with (
        RolloutPool("cheetah-vel", 2) as pool,
        pytest.raises(RuntimeError, match="no rollout actor can be started"),
    ):
        list(pool.run(blocks_in(tmp_path), {}))


class StillbornActor(rollouts.RolloutActor):
    def __init__(self, family: str, on_gpu: bool) -> None:
        os._exit(1)


def test_an_actor_that_hangs_is_started_again_and_its_block_runs_again(
    alone: dict[int, FileRecord], tmp_path: Path
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    blocks: list[Any] = [*blocks_in(tmp_path)]
    blocks[2] = StoppedBlock(blocks[2], tmp_path / "stopped")
    with RolloutPool("cheetah-vel", 2, block_limit_s=20) as pool:
        assert {record.task: record for _, record in pool.run(blocks, {})} == alone
    assert (tmp_path / "stopped").exists()


def test_a_block_that_always_hangs_is_named_with_the_limit(tmp_path: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with (
        RolloutPool("cheetah-vel", 2, block_limit_s=2) as pool,
        pytest.raises(
            RuntimeError, match=r"StoppedBlock.*ended its actor 3 times.*longer than 2 s.*cluster.block-limit-s"
        ),
    ):
        list(pool.run([StoppedBlock(blocks_in(tmp_path)[0], None)], {}))


def test_pools_of_several_families_one_after_the_other_each_get_all_cpus(tmp_path: Path) -> None:
    num_actors = int(ray.cluster_resources()["CPU"])
    for family in ("cheetah-vel", "cheetah-dir", "ant-dir"):
        storage, task = Storage.at(tmp_path / family), get_family(family).tasks[0]
        block = CollectBlock(storage, task, "random", 0, first_episode=0, episodes=1, seed=3)
        with RolloutPool(family, num_actors) as pool:
            assert [record.task for _, record in pool.run([block], {})] == [task]


def test_two_users_may_share_the_actors(alone: dict[int, FileRecord], tmp_path: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    pool = RolloutPool("cheetah-vel", 2)

    @ray.remote(num_cpus=1)
    def use(pool: RolloutPool, blocks: list[CollectBlock]) -> dict[int, FileRecord]:
        return {record.task: record for _, record in pool.run(blocks, {})}

    both = ray.get([use.remote(pool, blocks_in(tmp_path / name)) for name in ("first", "second")])
    pool.close()
    assert both == [alone, alone]


# --- evaluations


FAMILY = get_family("cheetah-vel")
PROTOCOL = ProtocolConfig(prompts=2, episodes_per_prompt=2)
NUM_BLOCKS = 10
KILLS = 2
"""One less than the deaths after which a block is given up, as both may hit the same one."""


@dataclass(frozen=True)
class WatchedBlock:
    """Leaves the process number of its actor in a folder while it runs."""

    inner: EvaluationBlock
    folder: Path

    def run(self, stepper: EpisodeStepper, shared: Any) -> Any:
        marker = self.folder / str(os.getpid())
        marker.touch()
        result = self.inner.run(stepper, shared)
        marker.unlink()
        return result


def evaluate(num_actors: int, folder: Path) -> tuple[pd.DataFrame, float]:
    """Evaluate two methods on tasks of several kinds; return the episodes in order and the actors' peak memory."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    pool_a, normaliser = tiny_pool(FAMILY, [1, 2])
    pool_b, _ = tiny_pool(FAMILY, [3, 4], seed=1)
    tasks = FAMILY.test_tasks
    policies = prompted(
        tiny_backbone(FAMILY),
        normaliser,
        {"a": dict.fromkeys(tasks, pool_a.prompts), "b": dict.fromkeys(tasks, pool_b.prompts)},
    )
    requests = PROTOCOL.requests(FAMILY, ["a", "b"], tasks)
    size = len(requests) // NUM_BLOCKS
    blocks = [
        WatchedBlock(EvaluationBlock(number, tuple(requests[number * size : (number + 1) * size]), PROTOCOL), folder)
        for number in range(NUM_BLOCKS)
    ]
    with RolloutPool(FAMILY.name, num_actors) as pool:
        done = [(block.inner.number, frame) for block, frame in pool.run(blocks, policies)]
    assert sorted(number for number, _ in done) == list(range(NUM_BLOCKS)), "a block is missing or came twice"
    frames = [frame for _, frame in sorted(done, key=lambda pair: pair[0])]
    return pd.concat(frames, ignore_index=True).drop(columns="seconds"), pool.peak_memory_gib


@pytest.fixture(scope="module")
def evaluated_alone(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    episodes, memory_gib = evaluate(1, tmp_path_factory.mktemp("evaluated"))
    assert 0.1 < memory_gib < 2
    assert np.isfinite(episodes["return"]).all()
    return episodes


def test_every_episode_is_the_same_on_any_number_of_actors(evaluated_alone: pd.DataFrame, tmp_path: Path) -> None:
    pd.testing.assert_frame_equal(evaluate(4, tmp_path)[0], evaluated_alone, check_exact=True)


def test_actors_killed_at_random_moments_lose_nothing_and_double_nothing(
    evaluated_alone: pd.DataFrame, tmp_path: Path
) -> None:
    killed, stop, generator = set[int](), threading.Event(), np.random.default_rng()

    def kill() -> None:
        while len(killed) < KILLS and not stop.is_set():
            time.sleep(generator.uniform(0, 0.3))
            running = sorted({int(marker.name) for marker in tmp_path.iterdir()} - killed)
            if running:
                victim = int(generator.choice(running))
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        episodes, _ = evaluate(2, tmp_path)
    finally:
        stop.set()
        thread.join()
    assert len(killed) == KILLS
    pd.testing.assert_frame_equal(episodes, evaluated_alone, check_exact=True)


def test_an_action_that_is_not_finite_stops_the_evaluation_with_its_name(tmp_path: Path) -> None:
    pool_a, normaliser = tiny_pool(FAMILY, [1, 2])
    broken = dataclasses.replace(pool_a.prompts, states=pool_a.prompts.states.clone())
    broken.states[1] = torch.nan
    policies = prompted(tiny_backbone(FAMILY), normaliser, {"a": {7: broken}})
    block = EvaluationBlock(0, tuple(PROTOCOL.requests(FAMILY, ["a"], [7])), PROTOCOL)
    with (
        RolloutPool(FAMILY.name, 1) as pool,
        pytest.raises(UserError, match=r"not finite at step 0 of .*task=7.*method='a', prompt=1"),
    ):
        list(pool.run([block], policies))
