"""Saved models give the outputs they gave before, and a folder of something else is refused."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.errors import UserError
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.tasks import get_family
from promptdiffuser.training.checkpoint import load_checkpoint, save_checkpoint
from promptdiffuser.training.model_folders import build_backbone, load_backbone, load_diffuser, save_backbone
from promptdiffuser.training.trainings import BackboneTraining, DiffuserTraining, make_resident

CPU, FAMILY = torch.device("cpu"), get_family("cheetah-vel")


def test_a_backbone_gives_the_same_actions_after_saving_and_loading(
    backbone_training: BackboneTraining, episodes: Episodes, tmp_path: Path
) -> None:
    resident, pool = make_resident(backbone_training, episodes, CPU)
    task = backbone_training.learning_task(resident, pool, CPU)
    backbone_training.save(tmp_path / "model", task, dict(task.model.state_dict()))
    loaded, normaliser = load_backbone(tmp_path / "model", FAMILY, CPU)
    history = resident.segments(np.arange(12), np.zeros(12, dtype=np.int64), 4)
    assert torch.equal(loaded(history, pool.prompts), task.model.eval()(history, pool.prompts))
    assert loaded.config == backbone_training.backbone
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for name, value in backbone_training.normaliser().tensors().items():
        assert torch.equal(getattr(normaliser, name), value), name


@pytest.mark.parametrize("with_context", [True, False])
def test_a_diffuser_generates_the_same_prompts_after_saving_and_loading(
    diffuser_training: DiffuserTraining, episodes: Episodes, tmp_path: Path, with_context: bool
) -> None:
    training = replace(diffuser_training, with_context=with_context)
    task = training.learning_task(*make_resident(training, episodes, CPU), CPU)
    training.save(tmp_path / "model", task, dict(task.model.state_dict()))
    loaded = load_diffuser(tmp_path / "model", FAMILY, CPU)
    noise_NBX = task.diffuser.draw_noise(12, 0)
    before = task.diffuser.generate(task.pool.prompts, task.pool.transitions, noise_NBX)
    after = loaded.generate(task.pool.prompts, task.pool.transitions, noise_NBX)
    for name, value in vars(before).items():
        assert torch.equal(getattr(after, name), value), name


def test_few_shot_training_starts_from_the_saved_diffuser(
    diffuser_training: DiffuserTraining, episodes: Episodes, tmp_path: Path
) -> None:
    """Weights and prompt space are the multi-task ones, not those that the few-shot episodes would give."""
    task = diffuser_training.learning_task(*make_resident(diffuser_training, episodes, CPU), CPU)
    diffuser_training.save(tmp_path / "model", task, {k: v + 1 for k, v in task.model.state_dict().items()})
    few = replace(diffuser_training, stage="few-shot/8", start_from=tmp_path / "model")
    few_task = few.learning_task(*make_resident(few, episodes.select(episodes.tasks == 8), CPU), CPU)
    for name, value in task.model.state_dict().items():
        assert torch.equal(few_task.model.state_dict()[name], value + 1), name
    assert torch.equal(few_task.diffuser.space.return_mean, task.diffuser.space.return_mean)


def test_a_folder_says_where_its_model_came_from(backbone_folder: Path, backbone_training: BackboneTraining) -> None:
    assert load_checkpoint(backbone_folder).documents["model"] == {
        "kind": "backbone",
        "family": "cheetah-vel",
        "config": asdict(backbone_training.backbone),
        "dataset_digest": "synthetic",
        "steps": 6,
    }


def test_a_backbone_of_another_family_is_refused(backbone_training: BackboneTraining, tmp_path: Path) -> None:
    weights = dict(build_backbone(BackboneConfig(width=8, layers=1), FAMILY, 0).state_dict())
    save_backbone(tmp_path / "model", weights, {"family": "ant-dir", "config": {}}, backbone_training.normaliser())
    with pytest.raises(UserError, match=r"'ant-dir'.*'cheetah-vel'"):
        load_backbone(tmp_path / "model", FAMILY, CPU)


def test_a_diffuser_of_another_family_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", {}, {"model": {"kind": "diffuser", "family": "ant-dir"}})
    with pytest.raises(UserError, match=r"'ant-dir'.*'cheetah-vel'"):
        load_diffuser(tmp_path / "model", FAMILY, CPU)


def test_another_kind_of_folder_is_refused(
    diffuser_training: DiffuserTraining, backbone_folder: Path, episodes: Episodes, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no diffuser but 'backbone'"):
        load_diffuser(backbone_folder, FAMILY, CPU)
    task = diffuser_training.learning_task(*make_resident(diffuser_training, episodes, CPU), CPU)
    diffuser_training.save(tmp_path / "model", task, dict(task.model.state_dict()))
    with pytest.raises(UserError, match="no backbone but 'diffuser'"):
        load_backbone(tmp_path / "model", FAMILY, CPU)
    save_checkpoint(tmp_path / "step-1", {}, {"progress": {"step": 1}})
    with pytest.raises(UserError, match="no backbone but 'training state'"):
        load_backbone(tmp_path / "step-1", FAMILY, CPU)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", ["backbone", "diffuser"])
def test_weights_that_are_not_finite_are_refused_by_name(
    diffuser_training: DiffuserTraining,
    backbone_folder: Path,
    episodes: Episodes,
    tmp_path: Path,
    kind: str,
    value: float,
) -> None:
    folder, load = backbone_folder, load_backbone
    if kind == "diffuser":
        folder, load = tmp_path / "trained", load_diffuser
        task = diffuser_training.learning_task(*make_resident(diffuser_training, episodes, CPU), CPU)
        diffuser_training.save(folder, task, dict(task.model.state_dict()))
    found = load_checkpoint(folder)
    name = next(reversed(found.tensors["weights"]))
    found.tensors["weights"][name].view(-1)[-1] = value
    save_checkpoint(tmp_path / "model", found.tensors, found.documents)
    with pytest.raises(UserError, match=rf"{tmp_path}/model.*{name}.*not finite"):
        load(tmp_path / "model", FAMILY, CPU)


def test_initial_weights_are_addressed_and_leave_the_global_generator_alone() -> None:
    config, state = BackboneConfig(width=8, layers=1), torch.random.get_rng_state()
    first, again, other = (build_backbone(config, FAMILY, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["embed_prompt.state.weight"], other["embed_prompt.state.weight"])
    assert torch.equal(torch.random.get_rng_state(), state)
