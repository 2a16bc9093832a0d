"""One method on one target task: the unit that adaptations are spread over a cluster and resumed by.

A cell's result is a folder, written last: what is there is not done again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from promptdiffuser.data.store import Dataset
from promptdiffuser.memory import forget_peak, peak_gib
from promptdiffuser.methods.adaptation import METHODS, Adaptation, AdaptationInputs, Method
from promptdiffuser.methods.folders import Origin, save_adaptation
from promptdiffuser.methods.inputs import InputsBuilder, InputsSettings
from promptdiffuser.training.checkpoint import is_whole
from promptdiffuser.training.model_folders import load_backbone
from promptdiffuser.training.trainings import DiffuserTraining, History


@dataclass(frozen=True)
class AdaptationCell:
    """A method, a target task, and where everything it needs is."""

    method: str
    task: int
    folder: Path
    dataset: Dataset
    backbone_folder: Path
    settings: InputsSettings
    diffuser_folder: Path | None = None
    few_shot_training: DiffuserTraining | None = None

    @property
    def result(self) -> Path:
        """Folder of the adapted policy and its cost."""
        return self.folder / "policy"

    @property
    def is_done(self) -> bool:
        """Whether it has its result, every byte as it was written."""
        return is_whole(self.result)

    def run(self, device: torch.device, on_history: Callable[[History], None] = lambda history: None) -> None:
        """Adapt and write the result."""
        # Data are normalised before they are moved to the device.
        backbone, normaliser = load_backbone(self.backbone_folder, self.dataset.family, torch.device("cpu"))
        builder = InputsBuilder(self.dataset, backbone.to(device), normaliser, self.settings)
        method, family = METHODS.find(self.method), self.dataset.family.name
        inputs = builder.inputs(
            method, self.task, self.folder, self.diffuser_folder, self.few_shot_training, on_history
        )
        target_return = self.settings.target_return
        origin = Origin.of(self.result, family, self.task, self.method, target_return, self.backbone_folder)
        save_adaptation(self.result, adapt(method, inputs), backbone, origin)


def adapt(method: Method, inputs: AdaptationInputs) -> Adaptation:
    """Let a method adapt, and measure its time and memory."""
    _forget_peak_memory()
    # What else a core has to do does not count; on a GPU, what the process waits for is the work.
    clock = time.process_time if inputs.device.type == "cpu" else time.perf_counter
    started = clock()
    adaptation = method.adapt(inputs)
    seconds = clock() - started
    return replace(adaptation, cost=replace(adaptation.cost, seconds=seconds, memory_gib=_peak_memory_gib()))


def _forget_peak_memory() -> None:
    forget_peak()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_memory_gib() -> float:
    """Return the peak of resident memory, and of a GPU's where there is one."""
    on_gpu = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return peak_gib() + on_gpu
