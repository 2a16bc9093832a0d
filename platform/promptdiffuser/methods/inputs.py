"""Gathering what the methods are given, in the units of one backbone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import PromptPool, ResidentEpisodes, cut_pool_pieces
from promptdiffuser.methods.adaptation import AdaptationInputs, Method, TaskData
from promptdiffuser.methods.config import settings_of
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.training.trainings import DiffuserTraining, History


@dataclass(frozen=True)
class InputsSettings:
    """What the methods see, besides models: part of what an adaptation's result depends on."""

    quality: Quality
    """Quality of the training tasks' episodes."""
    few_shot: FewShotConfig
    context_transitions: int
    """Transitions of each episode that a task context sees."""
    config: Any
    """Settings of all methods, `Experiment.adaptation`; each method sees its own."""
    num_prompts: int
    target_return: float
    """Return that the evaluation asks for at the first step, in the unit of the reward."""
    seed: int


@dataclass(frozen=True)
class InputsBuilder:
    """Gathers the inputs of adaptations to the tasks of one dataset."""

    dataset: Dataset
    backbone: PromptDT
    """On the device that everything is put on."""
    normaliser: Normaliser
    settings: InputsSettings

    def inputs(
        self,
        method: Method,
        task: int,
        folder: Path,
        diffuser_folder: Path | None = None,
        few_shot_training: DiffuserTraining | None = None,
        on_history: Callable[[History], None] = lambda history: None,
    ) -> AdaptationInputs:
        """Return the inputs of a method on one target task; its episodes are read when they are asked for."""
        settings = self.settings
        return AdaptationInputs(
            task=task,
            family=self.dataset.family,
            backbone=self.backbone,
            normaliser=self.normaliser,
            read_few_shot=lambda: self.few_shot([task], settings.few_shot),
            few_shot_of=lambda quality: self.few_shot([task], replace(settings.few_shot, quality=quality)),
            training=lambda: self.training.without(task),
            whole_task=lambda: self._data(self.dataset.read([task], settings.few_shot.quality)),
            diffuser_folder=diffuser_folder,
            few_shot_training=few_shot_training,
            settings=settings_of(settings.config, method),
            num_prompts=settings.num_prompts,
            target_return=settings.target_return,
            seed=settings.seed,
            folder=folder,
            on_history=on_history,
        )

    def few_shot(self, tasks: Sequence[int], few_shot: FewShotConfig) -> TaskData:
        """Return the few-shot sets of some target tasks."""
        return self._data(self.dataset.few_shot(tasks, few_shot))

    @cached_property
    def training(self) -> TaskData:
        """All episodes of the training tasks."""
        return self._data(self.dataset.read(self.dataset.family.train_tasks, self.settings.quality))

    def _data(self, episodes: Episodes) -> TaskData:
        device, config = self.backbone.action_head.weight.device, self.backbone.config
        pieces = cut_pool_pieces(episodes, config.prompt_length, self.settings.context_transitions)
        numbers = torch.arange(len(episodes)).numpy()
        return TaskData(
            PromptPool.build(pieces, self.normaliser, device),
            ResidentEpisodes.build(episodes, numbers, self.normaliser, device),
        )
