"""Every task family at the published sizes: 50,000 updates of pre-training with the public Prompt-DT's settings."""

from collections.abc import Callable
from dataclasses import replace

from promptdiffuser.experiment import (
    CollectionConfig,
    DiffuserTrainingConfig,
    Experiment,
    PretrainingConfig,
)
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.tasks import get_family
from promptdiffuser.training.backbone_objective import BackboneLossConfig
from promptdiffuser.training.engine import OptimisationConfig
from promptdiffuser.training.guidance import GuidanceConfig

WINDOWS_PER_TASK, MAX_WINDOWS = 16, 720
"""The public batch holds 16 windows of every training task; ml10 and ml45 get the largest published batch."""


PUBLIC = BackboneConfig()
"""The public Prompt-DT: 128 wide, 3 layers, 1 head."""
LARGE = BackboneConfig(width=512, layers=4, heads=8)
"""What the paper's shares of tunable parameters fit: 512 wide, 4 layers; the number of heads is not known."""
SNAPSHOT_EVERY = 5_000


def published_size(family: str, backbone: BackboneConfig = PUBLIC) -> Callable[[], Experiment]:
    """Return the recipe of a family with a size of backbone."""

    def recipe() -> Experiment:
        num_tasks = len(get_family(family).train_tasks)
        optimisation = OptimisationConfig(
            steps=20_000,
            learning_rate=3e-4,
            schedule="constant",
            weight_decay=0.0,
            clip_norm=10.0,
            average_decay=0.995,
        )
        return Experiment(
            name=family if backbone == PUBLIC else f"{family}-large",
            family=family,
            backbone=backbone,
            collection=CollectionConfig(episodes_per_task=get_family(family).episodes_per_task),
            pretraining=PretrainingConfig(
                loss=BackboneLossConfig(batch_size=min(WINDOWS_PER_TASK * num_tasks, MAX_WINDOWS)),
                optimisation=OptimisationConfig(snapshot_every=SNAPSHOT_EVERY),
            ),
            guidance=GuidanceConfig(weight=1.0),
            diffuser=DiffuserTrainingConfig(
                multi_task=replace(optimisation, snapshot_every=SNAPSHOT_EVERY),
                few_shot=replace(optimisation, steps=500, checkpoint_every=500),
            ),
        )

    size = f"{backbone.width} wide, {backbone.layers} layers"
    recipe.__doc__ = f"{family}, {size}, public settings: batch 16 a training task, AdamW 1e-4, lambda 1 (Eq. 9)."
    return recipe
