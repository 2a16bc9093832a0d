"""Prompts of the training tasks, tuned through the frozen backbone, for a diffuser to learn from in place of data.

What a diffuser learns by L_DM from episodes is no better than these. Here every training prompt is first tuned by the
action loss on its own task, as `prompt-tensor-tuning` does on few-shot episodes, and the diffuser learns what came of
it: amortised prompt tuning. y = (returns-to-go, timesteps) stays as it was, and the states and actions stay within the
bounds of the data, where generation is clipped.

Axes: N prompts, K steps, S state, A action.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.plans import EpisodeIndex
from promptdiffuser.data.store import Dataset
from promptdiffuser.data.windows import PromptPool, ResidentEpisodes, Segments, cut_pool_pieces
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.training.checkpoint import is_whole, load_checkpoint, save_checkpoint
from promptdiffuser.training.model_folders import load_backbone
from promptdiffuser.training.tuning import FewShotTuning, TuningConfig, tune

PROMPTS = "prompts"


@dataclass(frozen=True)
class OptimisedPromptsConfig(TuningConfig):
    """How the prompts of a training task are tuned before a diffuser learns from them."""

    steps: int = 60
    """Updates of AdamW at most; the best state on the held-out episodes is used."""
    learning_rate: float = 0.03
    """Step size of AdamW, constant."""
    prompts: int = 10
    """Prompts of each training task that are tuned, those of its first episodes; they stand in for the others."""

    def __post_init__(self) -> None:
        """Refuse values that cannot tune."""
        super().__post_init__()
        if self.prompts < 1:
            raise ValueError(f"prompts must be at least 1, got {self.prompts}")


@dataclass(frozen=True)
class PromptOptimisation:
    """The prompts of one training task, and where they go: a unit of work that is done once."""

    task: int
    folder: Path
    """Folder of all tasks' prompts."""
    dataset: Dataset
    quality: Quality
    backbone_folder: Path
    config: OptimisedPromptsConfig
    seed: int

    @property
    def result(self) -> Path:
        """Where the task's prompts are written."""
        return self.folder / f"task-{self.task}"

    @property
    def is_done(self) -> bool:
        """Whether they are there, every byte as it was written."""
        return is_whole(self.result)

    def run(self, device: torch.device) -> None:
        """Tune and write."""
        backbone, normaliser = load_backbone(self.backbone_folder, self.dataset.family, device)
        episodes = self.dataset.read([self.task], self.quality)
        pieces = cut_pool_pieces(episodes, backbone.config.prompt_length, num_transitions=0)
        pool = PromptPool.build(pieces, normaliser, device)
        windows = ResidentEpisodes.build(episodes, torch.arange(len(episodes)).numpy(), normaliser, device)
        address = (self.seed, "optimised-prompts", self.task)
        prompts = optimise(pool, windows, backbone, normaliser, self.config, address)
        save_checkpoint(self.result, {PROMPTS: {f.name: getattr(prompts, f.name) for f in fields(Segments)}}, {})


def optimise(
    pool: PromptPool,
    windows: ResidentEpisodes,
    backbone: PromptDT,
    normaliser: Normaliser,
    config: OptimisedPromptsConfig,
    address: tuple[int | str, ...],
) -> Segments:
    """Return the first prompts (N, K*) of one task's pool with tuned states and actions.

    The last episodes' actions choose each prompt's number of updates; a prompt that tuning makes worse stays as it is.
    """
    start = pool.prompts.select(slice(config.prompts))
    numbers = nn.ParameterList([start.states.clone(), start.actions.clone()])

    def prompts_at(rows_B: Tensor | slice) -> Segments:
        states_BKS = torch.clamp(numbers[0][rows_B], normaliser.state_low, normaliser.state_high)
        return replace(start.select(rows_B), states=states_BKS, actions=numbers[1][rows_B].clamp(-1, 1))

    tune(FewShotTuning(numbers, backbone, prompts_at, windows, pool.index, config, address, len(start)))
    with torch.no_grad():
        return prompts_at(slice(None))


def with_optimised_prompts(pool: PromptPool, folder: Path) -> PromptPool:
    """Return a pool whose prompts are the optimised ones of their tasks, in turn where a task has fewer."""
    parts = list(_read_in_turn(pool.index, folder, pool.transitions.device))
    return replace(pool, prompts=Segments.concatenate(parts))


def _read_in_turn(index: EpisodeIndex, folder: Path, device: torch.device) -> Iterator[Segments]:
    for task in index.task_ids:
        prompts = Segments(**load_checkpoint(folder / f"task-{task}", device).tensors[PROMPTS])
        num_episodes = int((index.tasks == task).sum())
        yield prompts.select(torch.arange(num_episodes, device=device) % len(prompts))
