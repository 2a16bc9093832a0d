"""Methods that draw prompts of training tasks see none of the target task, on every family."""

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import Dataset, DatasetWriter
from promptdiffuser.data.windows import Segments
from promptdiffuser.diffusion.process import DiffusionConfig
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.methods import METHODS
from promptdiffuser.methods.adaptation import AdaptationInputs, Method
from promptdiffuser.methods.backbones import backbone_config
from promptdiffuser.methods.diffusers import DIFFUSERS
from promptdiffuser.methods.inputs import InputsBuilder
from promptdiffuser.tasks import FAMILIES, get_family
from promptdiffuser.tasks.family import TaskFamily
from promptdiffuser.training.model_folders import build_diffuser, diffuser_document, save_diffuser
from tests.data.synthetic import draw_episodes
from tests.methods.conftest import DENOISER, SETTINGS
from tests.rollout.synthetic_policies import TINY, tiny_backbone

NUM_PROMPTS, EPISODES = 24, 3
every_family = pytest.mark.parametrize("name", FAMILIES)


@dataclasses.dataclass(frozen=True)
class FewTasks(Dataset):
    """A dataset of some of a family's tasks, which stand for all of them."""

    few: TaskFamily

    @property
    def family(self) -> TaskFamily:
        return self.few


@pytest.fixture(scope="module")
def dataset_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], FewTasks]:
    """Return a function: family -> up to three training tasks and one target task, whose returns are the highest."""

    @cache
    def write(name: str) -> FewTasks:
        family = get_family(name)
        target = family.test_tasks[-1]
        few = dataclasses.replace(family, train_tasks=family.train_tasks[:3], test_tasks=(target,))
        writer = DatasetWriter(tmp_path_factory.mktemp("few") / "dataset", family, "tests", seed=0)
        for task in sorted({*few.train_tasks, target}):
            drawn = draw_episodes(family, [task] * EPISODES, seed=task)
            writer.add("expert", dataclasses.replace(drawn, rewards=drawn.rewards + 5.0 * (task == target)))
            writer.add("medium", drawn)
            writer.add("random", drawn)
        written = writer.commit()
        return FewTasks(written.storage, written.manifest, few)

    return write


def inputs_of(method: Method, dataset: FewTasks, folder: Path) -> AdaptationInputs:
    family = dataset.family
    normaliser = Normaliser.fit(dataset.parts(family.train_tasks), family.return_scale)
    backbone = tiny_backbone(family, config=backbone_config(method.backbone, TINY))
    settings = dataclasses.replace(SETTINGS, num_prompts=NUM_PROMPTS)
    builder = InputsBuilder(dataset, backbone, normaliser, settings)
    diffuser = None
    if method.diffuser:
        variant = DIFFUSERS[method.diffuser]
        space = PromptSpace.fit(normaliser, builder.training.pool.prompts, family.horizon)
        config = dataclasses.replace(DENOISER, **variant.denoiser)
        made = build_diffuser(config, DiffusionConfig(), space, family, variant.sees_task_context, "test")
        sees_context, transitions = variant.sees_task_context, SETTINGS.context_transitions
        document = diffuser_document(family, config, DiffusionConfig(), sees_context, transitions)
        diffuser = save_diffuser(folder / "diffuser", dict(made.denoiser.state_dict()), document, space, normaliser)
    (target,) = family.test_tasks
    return builder.inputs(method, target, folder / "adaptation", diffuser)


def adapt(method: Method, dataset: FewTasks, folder: Path) -> tuple[Segments | None, bool]:
    """Return the prompts of a method, if it has trajectories, and whether it asked for the training tasks' data."""
    inputs, asked = inputs_of(method, dataset, folder), []

    def training() -> object:
        asked.append(True)
        return inputs.training()

    prompts = method.adapt(dataclasses.replace(inputs, training=training)).policy.prompts
    return (prompts if isinstance(prompts, Segments) else None), bool(asked)


@pytest.fixture(scope="module")
def drawing(dataset_of: Callable[[str], FewTasks], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the methods that ask for the training tasks' data; those that play episodes have no use for it."""
    dataset = dataset_of("cheetah-dir")
    offline = [name for name, method in METHODS.items() if not method.uses_simulator]
    return [name for name in offline if adapt(METHODS[name], dataset, tmp_path_factory.mktemp(name))[1]]


def test_the_methods_that_draw_training_prompts_are_found(drawing: list[str]) -> None:
    assert {"other-task-prompt", "nearest-prompt", "prompt-diffuser-z1", "prompt-diffuser-z2"} <= set(drawing)


@every_family
def test_training_data_has_no_episode_of_the_target_task(
    name: str, dataset_of: Callable[[str], FewTasks], tmp_path: Path
) -> None:
    dataset = dataset_of(name)
    inputs = inputs_of(METHODS["other-task-prompt"], dataset, tmp_path)
    training = inputs.training()
    others = [task for task in dataset.family.train_tasks if task != inputs.task]
    assert training.pool.index.task_ids.tolist() == others
    assert len(training.pool.prompts) == len(training.pool.transitions) == EPISODES * len(others)
    rows = np.arange(len(training.pool.index))
    windows = training.windows.segments(rows, training.pool.index.lengths - TINY.prompt_length - 1, TINY.prompt_length)
    assert torch.equal(windows.states, training.pool.prompts.states)


@every_family
def test_no_drawn_prompt_is_of_the_target_task(
    name: str, dataset_of: Callable[[str], FewTasks], drawing: list[str], tmp_path: Path
) -> None:
    dataset = dataset_of(name)
    for number, method in enumerate(drawing):
        if method == "vae-prompt":
            continue  # It generates with the y of the few-shot prompts.
        prompts, _ = adapt(METHODS[method], dataset, tmp_path / str(number))
        assert prompts is not None
        inputs = inputs_of(METHODS[method], dataset, tmp_path / f"target-{number}")
        of_target = inputs.whole_task().pool.prompts.returns_to_go
        shared = (prompts.returns_to_go[:, None] == of_target).any(2).any()
        assert not shared, f"{method} draws from the target task"


def test_a_family_that_leaves_nothing_but_the_target_task_is_refused() -> None:
    family = get_family("cheetah-dir")
    with pytest.raises(ValueError, match="cheetah-dir: task 0 is the only training task and a target task"):
        dataclasses.replace(family, train_tasks=(0,))
