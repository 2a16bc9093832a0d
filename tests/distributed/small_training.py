"""A pre-training of the smallest backbone, for tests that train it in several ways, and what scores it."""

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.plans import Rounds, RoundsConfig
from promptdiffuser.data.store import Dataset
from promptdiffuser.experiment import AdaptationConfig
from promptdiffuser.methods.inputs import InputsSettings
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.rollout.protocol import ProtocolConfig
from promptdiffuser.tasks import get_family
from promptdiffuser.training.backbone_objective import BackboneLossConfig
from promptdiffuser.training.engine import OptimisationConfig
from promptdiffuser.training.trainings import BackboneTraining

TASKS = (0, 1, 3, 5)
STEPS = 12


def small_training(dataset: Dataset, rounds: RoundsConfig) -> BackboneTraining:
    return BackboneTraining(
        family="cheetah-vel",
        seed=0,
        backbone=BackboneConfig(width=16, layers=1, history=4, prompt_length=3, dropout=0.0),
        loss=BackboneLossConfig(batch_size=12, precision="fp32"),
        optimisation=OptimisationConfig(
            steps=STEPS, learning_rate=1e-3, schedule="constant", clip_norm=1.0, checkpoint_every=4
        ),
        statistics=Normaliser.fit(dataset.parts(TASKS), 500.0).tensors(),
        dataset_digest=dataset.manifest.digest,
        rounds=Rounds.over(rounds, (record for _, record in dataset.files(TASKS))),
    )


def settings_of(protocol: ProtocolConfig, context_transitions: int = 0) -> InputsSettings:
    return InputsSettings(
        "expert",
        protocol.few_shot,
        context_transitions,
        AdaptationConfig(),
        protocol.num_prompts,
        protocol.targets(get_family("cheetah-vel"))[0],
        seed=0,
    )
