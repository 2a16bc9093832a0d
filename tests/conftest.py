"""Fixtures of the whole session: one Ray cluster, one small real dataset."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from promptdiffuser.data.manifest import Manifest, TaskRecord, package_versions
from promptdiffuser.data.store import Dataset, file_record, open_dataset, part_path, write_part
from promptdiffuser.evaluation.blocks import CollectBlock
from promptdiffuser.evaluation.stepping import EpisodeStepper
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import ExpertNetwork, shipped_weights
from tests import tiny

EPISODES = 3

# Networks are tiny here; threads that wait for each other on busy cores cost up to a hundred times what they give.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start a local Ray cluster as jobs do; tests never start one themselves."""
    import ray

    from promptdiffuser.distributed.cluster import connect
    from promptdiffuser.experiment import ClusterConfig

    connect(ClusterConfig(local_cpus=4))
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Collect three expert episodes and two random ones of every task of cheetah-vel in the real simulator."""
    family = get_family("cheetah-vel")
    folder = tmp_path_factory.mktemp("small") / "dataset"
    stepper = EpisodeStepper(family)
    experts = {"expert": ExpertNetwork.load(shipped_weights(family.name, "expert"))}
    files, tasks = {}, {}
    for task in family.tasks:
        expert = CollectBlock(task, "expert", EPISODES, seed=0).run(stepper, experts)
        random = CollectBlock(task, "random", 2, seed=0).run(stepper, experts)
        for quality, episodes in {"expert": expert, "random": random}.items():
            path = write_part(folder, quality, episodes)
            files[part_path(task, quality)] = file_record(path, task, quality, episodes.lengths)
        tasks[task] = TaskRecord(
            family.goal(task), random.returns.mean(), expert.returns.mean(), float(expert.returns.max())
        )
    Manifest(
        family=family.name,
        observation_dim=family.observation_dim,
        action_dim=family.action_dim,
        horizon=family.horizon,
        seed=0,
        command="tests/conftest.py",
        versions=package_versions(),
        tasks=tasks,
        files=files,
    ).write(folder)
    return open_dataset(folder)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the tiny quickstart once, on a local Ray cluster of its own, and return its outputs folder."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.run_pipeline(folder)
    return folder
