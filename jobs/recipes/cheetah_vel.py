"""cheetah-vel at the published size: 50,000 updates of pre-training with the public Prompt-DT's settings."""

from promptdiffuser.experiment import (
    CollectionConfig,
    DiffuserTrainingConfig,
    Experiment,
    PretrainingConfig,
)
from promptdiffuser.learning.backbone import BackboneLossConfig
from promptdiffuser.learning.diffuser import GuidanceConfig
from promptdiffuser.learning.engine import OptimisationConfig


def cheetah_vel() -> Experiment:
    """The public settings: batch 16 a training task, AdamW 1e-4 after 10,000 warm-up steps, lambda 1 (Eq. 9)."""
    return Experiment(
        name="cheetah-vel",
        collection=CollectionConfig(episodes_per_task=999, reference_episodes=20),
        pretraining=PretrainingConfig(loss=BackboneLossConfig(batch_size=480)),
        guidance=GuidanceConfig(weight=1.0),
        diffuser=DiffuserTrainingConfig(
            multi_task=OptimisationConfig(
                steps=20_000,
                learning_rate=3e-4,
                schedule="constant",
                weight_decay=0.0,
                clip_norm=10.0,
                average_decay=0.995,
            ),
            few_shot=OptimisationConfig(
                steps=500,
                learning_rate=3e-4,
                schedule="constant",
                weight_decay=0.0,
                clip_norm=10.0,
                average_decay=0.995,
                checkpoint_every=500,
            ),
        ),
    )
