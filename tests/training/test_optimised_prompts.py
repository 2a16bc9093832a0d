"""Tuned prompts of the training tasks: what tuning may change, and that a diffuser learns them."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import PromptPool, ResidentEpisodes, Segments
from promptdiffuser.errors import UserError
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.tasks import get_family
from promptdiffuser.training.backbone_objective import squared_action_errors
from promptdiffuser.training.checkpoint import save_checkpoint
from promptdiffuser.training.diffuser_objective import DiffuserLearning
from promptdiffuser.training.model_folders import load_backbone, save_backbone
from promptdiffuser.training.optimised_prompts import (
    OptimisedPromptsConfig,
    PromptOptimisation,
    optimise,
    with_optimised_prompts,
)
from promptdiffuser.training.trainings import BackboneTraining, DiffuserTraining, make_resident

CPU = torch.device("cpu")
FAMILY = get_family("cheetah-vel")
CONFIG = OptimisedPromptsConfig(steps=30, batch_steps=40, check_every=5, learning_rate=0.3)


@pytest.fixture(scope="module")
def one_task(
    backbone_training: BackboneTraining, backbone_folder: Path, episodes: Episodes
) -> tuple[PromptPool, ResidentEpisodes, PromptDT]:
    """Return the four episodes of a task, and a backbone."""
    windows, pool = make_resident(backbone_training, episodes.select(np.arange(4)), CPU)
    return pool, windows, load_backbone(backbone_folder, FAMILY, CPU)[0]


def losses(prompts: Segments, windows: ResidentEpisodes, backbone: PromptDT, episodes: Sequence[int]) -> Tensor:
    """Return the mean squared action error (N,) of each prompt on every window of some episodes."""
    rows = [(e, s) for e in episodes for s in range(0, int(windows.lengths[e]), 4)]
    history = windows.segments(*np.array(rows).T, 4)
    every = [squared_action_errors(backbone, history, prompts.select(torch.full((len(rows),), n))) for n in range(4)]
    return torch.stack([errors[history.valid].mean() for errors in every])


def test_tuning_lowers_the_loss_and_keeps_what_it_must(
    one_task: tuple[PromptPool, ResidentEpisodes, PromptDT], backbone_training: BackboneTraining
) -> None:
    pool, windows, backbone = one_task
    normaliser = backbone_training.normaliser()
    last_state = replace(CONFIG, held_out_episodes=0)
    seen = pool.index.select(slice(3))
    tuned = optimise(replace(pool, index=seen), windows, backbone, normaliser, last_state, (0, "test"))
    after, before = (losses(prompts, windows, backbone, range(3)) for prompts in (tuned, pool.prompts))
    assert (after < before).all()
    for name in ("returns_to_go", "timesteps", "rewards", "valid"):
        assert torch.equal(getattr(tuned, name), getattr(pool.prompts, name)), name
    assert not tuned.states.requires_grad
    for name, low, high in (("states", normaliser.state_low, normaliser.state_high), ("actions", -1.0, 1.0)):
        values = getattr(tuned, name)
        assert not torch.equal(values, getattr(pool.prompts, name))
        assert ((values >= low) & (values <= high)).all()


def test_no_prompt_is_worse_on_the_held_out_episode(
    one_task: tuple[PromptPool, ResidentEpisodes, PromptDT], backbone_training: BackboneTraining
) -> None:
    """Not even after steps so large that they throw the prompts to the bounds."""
    pool, windows, backbone = one_task
    harmful = replace(CONFIG, steps=2, check_every=1, learning_rate=1e4)
    tuned = optimise(pool, windows, backbone, backbone_training.normaliser(), harmful, (0, "test"))
    after, before = (losses(prompts, windows, backbone, [3]) for prompts in (tuned, pool.prompts))
    assert (after <= before + 1e-6).all()


def test_the_first_prompts_stand_in_for_the_others_of_their_task(
    backbone_training: BackboneTraining, episodes: Episodes, tmp_path: Path
) -> None:
    _, pool = make_resident(backbone_training, episodes, CPU)
    marked = replace(pool.prompts, states=torch.arange(12.0)[:, None, None].expand_as(pool.prompts.states))
    for row, task in enumerate((3, 8, 20)):
        first = marked.select(slice(4 * row, 4 * row + 3))
        named = {field.name: getattr(first, field.name) for field in fields(Segments)}
        save_checkpoint(tmp_path / f"task-{task}", {"prompts": named}, {})
    changed = with_optimised_prompts(pool, tmp_path)
    assert changed.prompts.states[:, 0, 0].tolist() == [0, 1, 2, 0, 4, 5, 6, 4, 8, 9, 10, 8]
    assert torch.equal(changed.prompts.returns_to_go[3], pool.prompts.returns_to_go[0])
    assert changed.index is pool.index
    assert changed.transitions is pool.transitions


def test_a_diffuser_learns_the_tuned_prompts_of_every_task(
    small_dataset: Dataset, backbone_training: BackboneTraining, diffuser_training: DiffuserTraining, tmp_path: Path
) -> None:
    """From the dataset to the training: the pool that is trained on holds what the tasks' folders hold."""
    tasks, config = FAMILY.train_tasks[:2], replace(CONFIG, steps=2, check_every=1, prompts=2)
    episodes = small_dataset.read(tasks)
    windows, pool = make_resident(backbone_training, episodes, CPU)
    model = backbone_training.learning_task(windows, pool, CPU).model
    document = {"family": FAMILY.name, "config": backbone_training.backbone.__dict__}
    folder = save_backbone(tmp_path / "model", dict(model.state_dict()), document, backbone_training.normaliser())
    pieces = [
        PromptOptimisation(task, tmp_path / "prompts", small_dataset, "expert", folder, config, seed=0)
        for task in tasks
    ]
    training = replace(diffuser_training, backbone_folder=folder, optimised_prompts=tmp_path / "prompts")
    with pytest.raises(UserError, match=f"task-{tasks[0]} is not a checkpoint"):
        training.learning_task(windows, pool, CPU)
    for piece in pieces:
        assert not piece.is_done
        piece.run(CPU)
        assert piece.is_done
    task = training.learning_task(windows, pool, CPU)
    assert isinstance(task, DiffuserLearning)
    assert torch.equal(task.pool.prompts.states, with_optimised_prompts(pool, tmp_path / "prompts").prompts.states)
    assert not torch.equal(task.pool.prompts.states, pool.prompts.states)
    assert torch.equal(task.pool.prompts.states[2], task.pool.prompts.states[0])


def test_values_that_cannot_tune_are_refused() -> None:
    with pytest.raises(ValueError, match="prompts must be at least 1, got 0"):
        OptimisedPromptsConfig(prompts=0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        OptimisedPromptsConfig(steps=0)
