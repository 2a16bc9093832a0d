"""Trainings of tiny models on tiny synthetic episodes of cheetah-vel's dimensions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.diffusion.process import DiffusionConfig
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.models.denoiser import DenoiserConfig
from promptdiffuser.training.backbone_objective import BackboneLossConfig
from promptdiffuser.training.engine import OptimisationConfig
from promptdiffuser.training.guidance import GuidanceConfig
from promptdiffuser.training.trainings import BackboneTraining, DiffuserTraining, make_resident

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def episodes() -> Episodes:
    """Return four episodes of each of three tasks, most of them shorter than the 12 steps there is room for."""
    rng, count, steps = np.random.default_rng(0), 12, 12
    lengths = rng.integers(5, steps + 1, count)
    used = np.arange(steps) < lengths[:, None]
    return Episodes(
        tasks=np.repeat([3, 8, 20], count // 3),
        seeds=np.arange(count),
        lengths=lengths,
        successes=np.zeros(count, bool),
        observations=(rng.normal(1, 2, (count, steps, 20)) * used[..., None]).astype(np.float32),
        actions=(rng.uniform(-1, 1, (count, steps, 6)) * used[..., None]).astype(np.float32),
        rewards=(rng.normal(-1, 1, (count, steps)) * used).astype(np.float32),
    )


@pytest.fixture(scope="session")
def backbone_training(episodes: Episodes) -> BackboneTraining:
    """Return a pre-training without dropout."""
    return BackboneTraining(
        family="cheetah-vel",
        seed=1,
        backbone=BackboneConfig(width=8, layers=1, history=4, prompt_length=2, dropout=0.0),
        loss=BackboneLossConfig(batch_size=8, precision="fp32"),
        optimisation=OptimisationConfig(steps=6, checkpoint_every=2, learning_rate=1e-2, schedule="one-cycle"),
        statistics=Normaliser.fit([episodes], 10.0).tensors(),
        dataset_digest="synthetic",
    )


@pytest.fixture(scope="session")
def backbone_folder(
    episodes: Episodes, backbone_training: BackboneTraining, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a saved backbone with weights so large that prompts move its actions."""
    folder = tmp_path_factory.mktemp("backbone") / "model"
    task = backbone_training.learning_task(*make_resident(backbone_training, episodes, CPU), CPU)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(value.shape, generator=generator) * 0.4 for name, value in task.model.state_dict().items()
    }
    backbone_training.save(folder, task, weights)
    return folder


@pytest.fixture(scope="session")
def diffuser_training(backbone_folder: Path) -> DiffuserTraining:
    """Return a multi-task training with a task context and guidance from the first update on."""
    return DiffuserTraining(
        family="cheetah-vel",
        seed=1,
        stage="multi-task",
        backbone_folder=backbone_folder,
        denoiser=DenoiserConfig(hidden=16, depth=1, time_features=4, context_features=4, context_hidden=8),
        diffusion=DiffusionConfig(steps=3),
        guidance=GuidanceConfig(batch_size=8, precision="fp32"),
        with_context=True,
        batch_size=8,
        guidance_start=0,
        context_episodes=2,
        context_transitions=3,
        optimisation=OptimisationConfig(
            steps=6, checkpoint_every=2, learning_rate=1e-2, schedule="constant", average_decay=0.9
        ),
        prompt_length=2,
        window_steps=4,
        dataset_digest="synthetic",
    )
