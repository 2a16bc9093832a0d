"""What every method is given in the tests: a small real dataset, a tiny backbone, an untrained diffuser."""

import dataclasses
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import Dataset
from promptdiffuser.diffusion.process import DiffusionConfig
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.experiment import AdaptationConfig
from promptdiffuser.methods.adaptation import AdaptationInputs, Method
from promptdiffuser.methods.adapters import AdaptersConfig
from promptdiffuser.methods.backbones import BACKBONES, backbone_config
from promptdiffuser.methods.best_of import BestOfConfig
from promptdiffuser.methods.diffusers import DIFFUSERS
from promptdiffuser.methods.fine_tuning import FineTuningConfig
from promptdiffuser.methods.inputs import InputsBuilder, InputsSettings
from promptdiffuser.methods.lora import LoraConfig
from promptdiffuser.methods.prompt_bandit import PromptBanditConfig
from promptdiffuser.methods.prompt_tensor_tuning import PromptTensorTuningConfig
from promptdiffuser.methods.prompt_tuning_dt import PromptTuningDTConfig, PromptTuningDTOnlineConfig
from promptdiffuser.methods.shared.steering import SamplingGuidanceConfig
from promptdiffuser.methods.soft_prompt import SoftPromptConfig
from promptdiffuser.methods.vae_prompt import VaePromptConfig
from promptdiffuser.models.denoiser import DenoiserConfig
from promptdiffuser.tasks import FAMILIES
from promptdiffuser.training.engine import OptimisationConfig
from promptdiffuser.training.guidance import GuidanceConfig
from promptdiffuser.training.model_folders import build_diffuser, diffuser_document, save_backbone, save_diffuser
from promptdiffuser.training.trainings import DiffuserTraining
from tests.rollout.synthetic_policies import TINY, tiny_backbone

FAMILY = FAMILIES["cheetah-vel"]
TASK, OTHER_TASK = 7, 15
NUM_PROMPTS, FEW_SHOT = 6, 3
CONTEXT_TRANSITIONS = 4
DENOISER = DenoiserConfig(hidden=16, depth=1, context_features=4, context_hidden=8)
FEW_UPDATES: dict[str, Any] = {"steps": 3, "batch_steps": 12, "check_every": 2}
CONFIG = AdaptationConfig(
    best_of=BestOfConfig(candidates=3, batch_steps=12),
    guided=SamplingGuidanceConfig(batch_steps=12),
    prompt_tensor_tuning=PromptTensorTuningConfig(**FEW_UPDATES),
    soft_prompt=SoftPromptConfig(**FEW_UPDATES),
    prompt_tuning_dt=PromptTuningDTConfig(steps=2, perturbations=3, batch_steps=12),
    prompt_tuning_dt_online=PromptTuningDTOnlineConfig(steps=1, perturbations=2),
    prompt_bandit=PromptBanditConfig(episodes=4, at_a_time=2, fit_steps=5),
    adapters=AdaptersConfig(**FEW_UPDATES, bottleneck=4),
    lora=LoraConfig(**FEW_UPDATES, rank=2),
    fine_tuning=FineTuningConfig(**FEW_UPDATES),
    vae_prompt=VaePromptConfig(updates=4, batch_size=8, latent=2, hidden=8, context_features=4, context_hidden=8),
)
"""Every method's settings, cut down to a few updates."""
TARGET_RETURN = -12.0
SETTINGS = InputsSettings(
    "expert", FewShotConfig(episodes=FEW_SHOT), CONTEXT_TRANSITIONS, CONFIG, NUM_PROMPTS, TARGET_RETURN, seed=0
)


@dataclasses.dataclass(frozen=True)
class Models:
    """Folders of the backbones and diffusers that methods build on."""

    backbones: dict[str, Path]
    diffusers: dict[str, Path]


@pytest.fixture(scope="session")
def normaliser(small_dataset: Dataset) -> Normaliser:
    return Normaliser.fit(small_dataset.parts(FAMILY.train_tasks), FAMILY.return_scale)


@pytest.fixture(scope="session")
def models(small_dataset: Dataset, normaliser: Normaliser, tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    found = Models({}, {})
    for variant in BACKBONES:
        config = backbone_config(variant, TINY)
        document = {"family": FAMILY.name, "config": asdict(config)}
        weights = tiny_backbone(FAMILY, config=config).state_dict()
        found.backbones[variant] = save_backbone(folder / variant, weights, document, normaliser)
    builder = InputsBuilder(small_dataset, tiny_backbone(FAMILY), normaliser, SETTINGS)
    space = PromptSpace.fit(normaliser, builder.training.pool.prompts, FAMILY.horizon)
    for name, variant in DIFFUSERS.items():
        denoiser, with_context = dataclasses.replace(DENOISER, **variant.denoiser), variant.sees_task_context
        diffuser = build_diffuser(denoiser, DiffusionConfig(), space, FAMILY, with_context, "test")
        document = diffuser_document(FAMILY, denoiser, DiffusionConfig(), with_context, CONTEXT_TRANSITIONS)
        found.diffusers[name] = save_diffuser(
            folder / f"diffuser-{name}", dict(diffuser.denoiser.state_dict()), document, space, normaliser
        )
    return found


@pytest.fixture
def make_inputs(
    small_dataset: Dataset, normaliser: Normaliser, models: Models, tmp_path: Path
) -> Callable[..., AdaptationInputs]:
    """Return a function (method, task, seed, num_prompts, dataset) -> inputs; each call has a folder of its own."""
    calls = iter(range(1000))

    def make(
        method: Method,
        task: int = TASK,
        seed: int = 0,
        num_prompts: int = NUM_PROMPTS,
        dataset: Dataset = small_dataset,
    ) -> AdaptationInputs:
        settings = dataclasses.replace(SETTINGS, seed=seed, num_prompts=num_prompts)
        config = backbone_config(method.backbone, TINY)
        builder = InputsBuilder(dataset, tiny_backbone(FAMILY, config=config), normaliser, settings)
        diffuser = models.diffusers[method.diffuser] if method.diffuser else None
        training = few_shot_training(method, models, task, seed) if method.few_shot_updates else None
        return builder.inputs(method, task, tmp_path / str(next(calls)), diffuser, training)

    return make


def few_shot_training(method: Method, models: Models, task: int, seed: int) -> DiffuserTraining:
    assert method.diffuser is not None
    variant = DIFFUSERS[method.diffuser]
    return DiffuserTraining(
        family=FAMILY.name,
        seed=seed,
        stage=f"few-shot-{task}",
        backbone_folder=models.backbones["prompt-dt"],
        denoiser=dataclasses.replace(DENOISER, **variant.denoiser),
        diffusion=DiffusionConfig(),
        guidance=GuidanceConfig(batch_size=4, **variant.guidance),
        with_context=variant.sees_task_context,
        batch_size=4,
        guidance_start=0,
        context_episodes=2,
        context_transitions=CONTEXT_TRANSITIONS,
        optimisation=OptimisationConfig(steps=2, learning_rate=1e-2, schedule="constant"),
        prompt_length=TINY.prompt_length,
        window_steps=TINY.window_steps,
        dataset_digest="",
        start_from=models.diffusers[method.diffuser],
    )
