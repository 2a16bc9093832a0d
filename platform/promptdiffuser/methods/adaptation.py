"""What every adaptation method is given and must return, and how it becomes known: `register`."""

import colorsys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.windows import PromptPool, ResidentEpisodes, Segments
from promptdiffuser.methods.backbones import PROMPTED
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.registry import LAST, Registry
from promptdiffuser.rollout.policies import AdaptedPolicy
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.tasks.family import TaskFamily
from promptdiffuser.training.trainings import DiffuserTraining, History


@dataclass(frozen=True)
class TaskData:
    """Episodes in the networks' units: to draw history windows from, and the prompts and transitions cut from them."""

    pool: PromptPool
    windows: ResidentEpisodes

    def without(self, task: int) -> "TaskData":
        """Return the episodes of all tasks but one; these themselves where that task is not among them."""
        kept_N = self.pool.index.tasks != task
        if kept_N.all():
            return self
        return TaskData(self.pool.select(kept_N), self.windows.select(kept_N))


@dataclass(frozen=True)
class AdaptationInputs:
    """All that a method may see of one target task. Its returns at test time are not among it."""

    task: int
    family: TaskFamily
    """For methods that spend environment episodes and say so, and for sizes."""
    backbone: PromptDT
    """The frozen backbone; a method that changes weights changes a copy."""
    normaliser: Normaliser
    read_few_shot: Callable[[], TaskData]
    """Reads the target task's few-shot set; zero-shot methods never call it."""
    few_shot_of: Callable[[Quality], TaskData]
    """Returns the first few-shot episodes of another quality, for methods that name it in `Method.qualities`."""
    training: Callable[[], TaskData]
    """Returns the episodes of all training tasks but the target task, which is one of them on families that test on
    training tasks. They are read when they are asked for, as few methods need them."""
    whole_task: Callable[[], TaskData]
    """Returns every episode of the target task, for upper bounds that say so in `Method.reads_whole_task`."""
    diffuser_folder: Path | None
    """The method's diffuser after its multi-task training, for methods that have one."""
    few_shot_training: DiffuserTraining | None
    """The diffuser's few-shot stage on this task; None leaves the diffuser as the multi-task training made it."""
    settings: Any
    """The method's own settings, of the class `Method.settings`; None for a method without any."""
    num_prompts: int
    target_return: float
    """Return that the evaluation asks for at the first step, in the unit of the reward."""
    seed: int
    folder: Path
    """Where an adaptation that takes long keeps checkpoints, so that it goes on where it was interrupted."""
    on_history: Callable[[History], None] = lambda history: None
    """Takes the metrics of a training within the adaptation, the whole history each time."""

    @cached_property
    def few_shot(self) -> TaskData:
        """The target task's few-shot set."""
        return self.read_few_shot()

    @property
    def device(self) -> torch.device:
        """Where data and backbone are."""
        return self.backbone.action_head.weight.device

    def few_shot_prompts(self, num_episodes: int | None = None) -> Segments:
        """Return `num_prompts` prompts of few-shot episodes in turn, of the first ones alone if a number is given."""
        return self.few_shot.pool.in_turn(self.num_prompts, num_episodes)


@dataclass(frozen=True)
class Cost:
    """What adapting to one task took."""

    tunable_parameters: int = 0
    """Numbers that are fitted to the target task, those of one prompt where each prompt has its own."""
    gradient_steps: int = 0
    """Updates made on the target task, of all prompts at once where each has its own; without a gradient, of the
    search."""
    environment_episodes: int = 0
    """Episodes played in the target task's simulator."""
    seconds: float = 0.0
    """Time of the adaptation: the processor's on a CPU, that of the clock on a GPU; measured by the caller."""
    memory_gib: float = 0.0
    """Peak memory of the process, GiB, what was there before included; measured by the caller."""


@dataclass(frozen=True)
class Adaptation:
    """What a method returns."""

    policy: AdaptedPolicy
    cost: Cost = Cost()


@dataclass(frozen=True)
class Method:
    """A way of adapting the frozen backbone to a task."""

    name: str
    adapt: Callable[[AdaptationInputs], Adaptation]
    """Equal inputs give equal policies. The policy has `num_prompts` prompts."""
    summary: str
    """What it does, in a few words for tables."""
    label: str = ""
    """Its name for readers of reports; by default `name`."""
    colour: str = ""
    """Its colour in figures, #rrggbb; by default one that depends only on `name`."""
    settings: type[Any] | None = None
    """Frozen dataclass of its settings, every field with a default and a docstring; None if it has no settings."""
    section: str = ""
    """Field of an experiment's `adaptation` that holds the settings; by default `name` with underscores. Methods with
    the same settings share a section."""
    backbone: str = PROMPTED
    """Which variant of the backbone it adapts, see `BACKBONES`."""
    diffuser: str | None = None
    """Which diffuser is trained for it on the training tasks, see `DIFFUSERS`."""
    few_shot_updates: bool = False
    """Whether its diffuser is then trained on the few-shot episodes of each target task."""
    qualities: tuple[Quality, ...] = ()
    """Qualities of the target task's episodes that it asks for besides the few-shot set."""
    is_zero_shot: bool = False
    """Whether it sees nothing of the target task, the few-shot set neither."""
    changes_weights: bool = False
    """Whether the adapted policy has a backbone of its own; else the frozen one comes back as it was."""
    uses_simulator: bool = False
    """Whether it plays episodes of the target task."""
    reads_whole_task: bool = False
    """Whether it sees all data of the target task: an upper bound, no few-shot method."""
    rebuild: Callable[[PromptDT, Mapping[str, Tensor]], PromptDT] | None = None
    """(copy of the frozen backbone, weights that differ from it) -> the backbone, with the layers that the weights
    belong to; for methods that add layers. It is called when an adapted policy is loaded."""

    def __post_init__(self) -> None:
        """Derive label, colour and section from the name where they are not given."""
        defaults = {"label": self.name, "colour": colour_of(self.name), "section": self.name.replace("-", "_")}
        for field, default in defaults.items():
            object.__setattr__(self, field, getattr(self, field) or default)


METHODS: Registry[Method] = Registry("method")


def register(method: Method, place: int = LAST) -> Method:
    """Make a method known by its name and return it; `place` is where it stands in tables.

    Raises:
        UserError: The name is taken, or an experiment has been composed of the settings of the other methods.
    """
    return METHODS.add(method.name, method, place)


def colour_of(name: str) -> str:
    """Return a colour, #rrggbb, dark enough for white paper, that depends only on a name."""
    digest = zlib.crc32(name.encode())
    hue, lightness = (digest >> 16) / 2**16, 0.26 + 0.1 * (digest % 2**16) / 2**16
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, lightness, 0.55))
