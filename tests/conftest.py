"""Fixtures of the whole session: in each of its processes one Ray cluster and one small real dataset."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from promptdiffuser.data.store import Dataset, DatasetWriter
from promptdiffuser.rollout.blocks import collect_blocks
from promptdiffuser.rollout.stepping import EpisodeStepper
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import Quality, demonstrators
from tests import tiny

FAMILY = get_family("cheetah-vel")
TARGETS = FAMILY.test_tasks[1:3]
EPISODES: dict[Quality, dict[int, int]] = {
    "expert": dict.fromkeys(FAMILY.tasks, 3),
    "medium": dict.fromkeys(TARGETS, 3),
    "random": dict.fromkeys(FAMILY.tasks, 2) | dict.fromkeys(TARGETS, 3),
}
"""Quality -> task -> episodes. Two target tasks have a few-shot set of every quality."""

# Networks are tiny here; threads that wait for each other on busy cores cost up to a hundred times what they give.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start a local Ray cluster as jobs do; tests never start one themselves."""
    import ray

    from promptdiffuser.distributed.cluster import connect
    from promptdiffuser.experiment import ClusterConfig

    connect(ClusterConfig(local_cpus=6))
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Collect a few episodes of every task of cheetah-vel in the real simulator."""
    folder = tmp_path_factory.mktemp("small") / "dataset"
    stepper = EpisodeStepper(FAMILY)
    writer = DatasetWriter(folder, FAMILY, "tests/conftest.py", seed=0)
    for quality, episodes in EPISODES.items():
        makers = demonstrators(FAMILY, quality)
        for task, count in episodes.items():
            for block in collect_blocks(writer.storage, FAMILY, task, quality, count, seed=0):
                writer.adopt(block.name, block.run(stepper, makers))
    return writer.commit()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the tiny quickstart once, on a local Ray cluster of its own, and return its outputs folder.

    Where processes share the tests, the first that needs it runs it for both.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "tiny-run"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "quickstart" / "report.html").exists():
            folder.mkdir(exist_ok=True)
            tiny.run_pipeline(folder)
    return folder
