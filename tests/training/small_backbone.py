"""A backbone training of a second on synthetic episodes, for tests in other folders too."""

import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.tasks import get_family
from promptdiffuser.training.backbone_objective import BackboneLossConfig
from promptdiffuser.training.engine import OptimisationConfig
from promptdiffuser.training.trainings import BackboneTraining
from tests.data.synthetic import draw_episodes

FAMILY = get_family("cheetah-vel")
CPU = torch.device("cpu")


def short_episodes() -> Episodes:
    """Return four episodes of each of two tasks, so short that many windows reach past their ends."""
    return draw_episodes(FAMILY, [3] * 4 + [8] * 4, lengths=range(5, 13))


def small_training(episodes: Episodes) -> BackboneTraining:
    """Return a pre-training of six steps that logs each of them, checkpoints every second one, and has no dropout."""
    return BackboneTraining(
        family=FAMILY.name,
        seed=1,
        backbone=BackboneConfig(width=16, layers=2, heads=2, history=6, prompt_length=3, dropout=0.0),
        loss=BackboneLossConfig(batch_size=8, precision="fp32"),
        optimisation=OptimisationConfig(steps=6, checkpoint_every=2, learning_rate=1e-2, schedule="constant"),
        statistics=Normaliser.fit([episodes], FAMILY.return_scale).tensors(),
        dataset_digest="synthetic",
    )
