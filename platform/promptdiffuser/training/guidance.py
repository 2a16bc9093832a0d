"""How the downstream loss guides the diffuser: which losses an update follows, how strongly, and by which path."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from promptdiffuser.registry import Registry, suggest
from promptdiffuser.training.precision import Precision, check_precision
from promptdiffuser.training.projection import PROJECTIONS

WEIGHT_SCHEDULES: Registry[Callable[[float], float]] = Registry(
    "weight schedule",
    {
        "constant": lambda progress: 1.0,
        "linear": lambda progress: progress,
        "cosine": lambda progress: 0.5 * (1 - math.cos(math.pi * progress)),
    },
)
"""Progress in (0, 1] -> share of the way from the initial weight to the weight."""


@dataclass(frozen=True)
class ScheduledWeight:
    """A weight of the downstream gradient and how it changes in the course of what it guides."""

    weight: float = 1.0
    """Guidance weight at the end; 0 is no guidance."""
    weight_schedule: str = "constant"
    """constant, linear or cosine: how the weight goes from `initial_weight` to `weight`."""
    initial_weight: float = 0.0
    """Weight that a linear or cosine schedule starts from; above `weight`, guidance fades out."""

    def check_weight(self, section: str) -> None:
        """Refuse an unknown schedule and impossible weights, by the name of the configuration."""
        if self.weight_schedule not in WEIGHT_SCHEDULES:
            raise ValueError(
                f"{section}.weight_schedule {self.weight_schedule!r} is unknown; "
                f"{WEIGHT_SCHEDULES.suggest(self.weight_schedule)}"
            )
        for name in ("weight", "initial_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{section}.{name} must not be negative and must be finite, got {getattr(self, name)}")
        if self.initial_weight and self.weight_schedule == "constant":
            raise ValueError(
                f"{section}.initial_weight needs {section}.weight_schedule linear or cosine, a constant weight has none"
            )

    @property
    def acts(self) -> bool:
        """Whether the downstream loss is there at all."""
        return max(self.weight, self.initial_weight) > 0

    def weight_at(self, progress: float) -> float:
        """Return the weight after a share (0, 1] of what is guided; the last one is `weight`."""
        if self.weight_schedule == "constant":
            return self.weight
        share = WEIGHT_SCHEDULES[self.weight_schedule](progress)
        return self.initial_weight + share * (self.weight - self.initial_weight)


@dataclass(frozen=True)
class GuidanceConfig(ScheduledWeight):
    """How the downstream loss guides the training of the diffuser."""

    weight: float = 5.0
    """Guidance weight lambda of the downstream gradient; 0 trains on the denoising loss alone. The paper has 1."""
    weight_schedule: str = "constant"
    """constant, linear or cosine: how the weight goes from `initial_weight` to `weight` over a stage's guided
    updates. The paper's is constant."""
    initial_weight: float = 0.0
    """Weight that a linear or cosine schedule starts from; above `weight`, guidance fades out."""
    match_norms: bool = True
    """Scale the downstream gradient to the denoising gradient's length before weighting it."""
    losses: Literal["joint", "alternating", "downstream"] = "joint"
    """joint: both gradients in every update. alternating: the denoising gradient and the downstream one in turn.
    downstream: the downstream gradient alone (the paper's ablation ab:dt); ab:dm is a weight of 0."""
    projection: str = "complement"
    """complement, complement-tensor, complement-mean, conflict, conflict-tensor, basis, basis-mean or sum, see
    docs/guidance.md."""
    project: Literal["gradient", "update"] = "gradient"
    """gradient: project the downstream gradient, as the paper does. update: project the guidance's share of the
    update, after AdamW has scaled the gradient's elements, so that the promise holds for the step itself."""
    path: Literal["chain", "one-step"] = "chain"
    """Way of the downstream gradient to the denoiser. chain: back through the reverse chain, as in Diffusion-QL.
    one-step: through a single prediction of x0 from a noised real prompt, as in EDP (Kang et al. 2023)."""
    path_steps: int = 0
    """Last denoising steps of the chain that the gradient goes back through, as in DRaFT-K (Clark et al. 2024); 0 is
    all of them."""
    energy: float = 0.97
    """Share of the squared singular values that the basis of `basis` and `basis-mean` holds; GPM begins with 0.97."""
    memory_decay: float = 0.9
    """What stays per update of the memory of `complement-mean`, `basis` and `basis-mean`; 0.9 remembers some ten
    minibatches, 0 the present one."""
    batch_size: int = 64
    """History windows, each with a generated prompt, in the downstream loss of one update."""
    window_steps: int = 0
    """Steps of these windows; 0 is the longest that the backbone takes. With banded attention that is whole episodes,
    but shorter windows show as many actions behind more prompts; their first steps see less history."""
    accumulation: int = 1
    """Pieces that a worker cuts its part of that batch into, to need less memory; their gradients are added up."""
    precision: Precision = "auto"
    """auto, fp32, bf16 or fp16: number format of the products in both losses."""

    def __post_init__(self) -> None:
        """Refuse unknown rules, impossible sizes and choices that contradict each other."""
        known = {
            "projection": tuple(PROJECTIONS),
            "losses": ("joint", "alternating", "downstream"),
            "project": ("gradient", "update"),
            "path": ("chain", "one-step"),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"guidance.{name} {getattr(self, name)!r} is unknown; {suggest(getattr(self, name), values)}"
                )
        self.check_weight("guidance")
        if not 0 < self.energy <= 1:
            raise ValueError(f"guidance.energy must be in (0, 1], got {self.energy}")
        if not 0 <= self.memory_decay < 1:
            raise ValueError(f"guidance.memory_decay must be in [0, 1), got {self.memory_decay}")
        for name in ("batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"guidance.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("path_steps", "window_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"guidance.{name} must not be negative, got {getattr(self, name)}")
        if self.path_steps and self.path != "chain":
            raise ValueError("guidance.path_steps needs guidance.path chain, a single prediction has no steps")
        check_precision("guidance.precision", self.precision)
        self._check_losses()

    def _check_losses(self) -> None:
        if self.losses != "joint" and (self.projection != "sum" or self.project != "gradient"):
            raise ValueError(
                f"guidance.losses {self.losses!r} follows one gradient at a time, there is nothing to project; "
                "set guidance.projection sum and guidance.project gradient"
            )
        if self.losses == "downstream" and self.match_norms:
            raise ValueError(
                "guidance.match_norms must be off with guidance.losses downstream: L_DM is to be left out, its "
                "gradient's length too"
            )
