"""The experiment a newcomer runs first: every stage for real, in minutes on two cores."""

from promptdiffuser.experiment import (
    ClusterConfig,
    CollectionConfig,
    DiffuserTrainingConfig,
    Experiment,
    PretrainingConfig,
)
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.rollout.protocol import ProtocolConfig
from promptdiffuser.training.backbone_objective import BackboneLossConfig
from promptdiffuser.training.engine import OptimisationConfig
from promptdiffuser.training.guidance import GuidanceConfig


def quickstart() -> Experiment:
    """cheetah-vel with the public backbone size and short training; two Train workers, two rollout actors."""
    return Experiment(
        name="quickstart",
        family="cheetah-vel",
        collection=CollectionConfig(episodes_per_task=30),
        # Without dropout: a short run under-fits rather than over-fits.
        backbone=BackboneConfig(dropout=0.0),
        pretraining=PretrainingConfig(
            loss=BackboneLossConfig(batch_size=64),
            optimisation=OptimisationConfig(
                steps=1_200, learning_rate=1e-3, schedule="one-cycle", checkpoint_every=100
            ),
        ),
        guidance=GuidanceConfig(weight=5.0, batch_size=32),
        diffuser=DiffuserTrainingConfig(
            guidance_start=500,
            multi_task=OptimisationConfig(
                steps=1_300,
                # The denoising loss needs the high steps, the guided updates the low ones at the end of the cycle.
                learning_rate=1e-3,
                schedule="one-cycle",
                weight_decay=0.0,
                clip_norm=10.0,
                average_decay=0.99,
                checkpoint_every=100,
            ),
            few_shot=OptimisationConfig(
                steps=60,
                learning_rate=3e-4,
                schedule="constant",
                weight_decay=0.0,
                clip_norm=10.0,
                average_decay=0.9,
                checkpoint_every=20,
            ),
        ),
        evaluation=ProtocolConfig(prompts=10, episodes_per_prompt=3),
        cluster=ClusterConfig(train_workers=2, rollout_actors=2),
    )
