"""Prompts of training tasks are tuned by Ray tasks, each to the same result as without Ray."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import Dataset
from promptdiffuser.distributed.optimised_prompts import optimise_prompts
from promptdiffuser.training.checkpoint import load_checkpoint
from promptdiffuser.training.model_folders import save_backbone
from promptdiffuser.training.optimised_prompts import OptimisedPromptsConfig, PromptOptimisation
from tests.rollout.synthetic_policies import TINY, tiny_backbone


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_tasks_write_what_a_plain_loop_writes(small_dataset: Dataset, tmp_path: Path) -> None:
    family = small_dataset.family
    tasks = family.train_tasks[:3]
    normaliser = Normaliser.fit(small_dataset.parts(tasks), family.return_scale)
    document = {"family": family.name, "config": asdict(TINY)}
    backbone = save_backbone(tmp_path / "model", tiny_backbone(family).state_dict(), document, normaliser)
    config = OptimisedPromptsConfig(steps=3, batch_steps=12, check_every=2)
    pieces = [
        PromptOptimisation(task, tmp_path / "ray", small_dataset, "expert", backbone, config, seed=0) for task in tasks
    ]
    assert sorted(piece.task for piece in optimise_prompts(pieces)) == list(tasks)
    for piece in pieces:
        plain = replace(piece, folder=tmp_path / "plain")
        plain.run(torch.device("cpu"))
        ours, expected = (load_checkpoint(each.result).tensors["prompts"] for each in (piece, plain))
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], expected[name]) for name in ours)
