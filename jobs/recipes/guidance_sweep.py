"""Sweeps over how strongly, and along which noise schedule, the downstream loss guides the diffuser."""

import dataclasses
from dataclasses import dataclass, field

from promptdiffuser.experiment import Experiment
from promptdiffuser.methods import get_method
from recipes.quickstart import quickstart


@dataclass(frozen=True)
class GuidanceSweep:
    """A grid of guidance weight x noise schedule around a base experiment, whose backbone all trials share."""

    name: str
    """Name of the sweep's run in MLflow."""
    experiment: Experiment
    method: str = "prompt-diffuser-context"
    """Method whose diffuser is trained; multi-task only, so that its prompts cost no update on the target task."""
    guidance_weights: tuple[float, ...] = field(default=(0.0, 1.0, 5.0, 10.0))
    """Values of lambda."""
    schedules: tuple[str, ...] = ("vp", "cosine")
    """Noise schedules."""
    concurrency: int = 2
    """Trials at a time, one CPU each."""

    def __post_init__(self) -> None:
        """Refuse an empty grid, points that no experiment could have, and a method without a diffuser."""
        if not self.guidance_weights or not self.schedules:
            raise ValueError("guidance_weights and schedules must not be empty")
        for weight in self.guidance_weights:
            dataclasses.replace(self.experiment.guidance, weight=weight)
        for schedule in self.schedules:
            dataclasses.replace(self.experiment.diffusion, schedule=schedule)
        if get_method(self.method).diffuser is None:
            raise ValueError(f"method must be one that trains a diffuser, got {self.method!r}")
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {self.concurrency}")


def quickstart_guidance() -> GuidanceSweep:
    """Eight short trainings on the quickstart's backbone."""
    base = quickstart()
    multi_task = dataclasses.replace(base.diffuser.multi_task, steps=700, checkpoint_every=100)
    return GuidanceSweep(
        name="quickstart-guidance",
        experiment=dataclasses.replace(
            base,
            diffuser=dataclasses.replace(base.diffuser, multi_task=multi_task, guidance_start=400),
        ),
    )
