"""Datasets made from nothing: the same command gives the same digest, another seed another one, for every family."""

from pathlib import Path

import pytest

from promptdiffuser.data.store import DatasetWriter
from promptdiffuser.rollout.blocks import collect_blocks
from promptdiffuser.rollout.stepping import EpisodeStepper
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.tasks.experts import demonstrators
from promptdiffuser.tasks.family import TaskFamily


def collect(folder: Path, family: TaskFamily, seed: int, backwards: bool = False) -> str:
    """Return the digest of an expert episode of the first and one of the last task, made in either order."""
    writer = DatasetWriter(folder, family, "python jobs/collect.py", seed)
    tasks = (family.tasks[0], family.tasks[-1])
    blocks = [block for task in tasks for block in collect_blocks(writer.storage, family, task, "expert", 1, seed)]
    stepper, makers = EpisodeStepper(family), demonstrators(family, "expert")
    for block in reversed(blocks) if backwards else blocks:
        writer.adopt(block.name, block.run(stepper, makers))
    return writer.commit().manifest.digest


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_same_seed_gives_the_same_digest_in_any_order_and_another_seed_another(
    family: TaskFamily, tmp_path: Path
) -> None:
    first = collect(tmp_path / "first", family, seed=0)
    assert collect(tmp_path / "again", family, seed=0, backwards=True) == first
    assert collect(tmp_path / "other", family, seed=1) != first
