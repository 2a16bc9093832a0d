"""The form of a benchmark's result, and the number formats that are measured."""

from dataclasses import dataclass

import torch

from promptdiffuser.training.precision import best_precision

INFIX = {"bf16": "", "fp32": "fp32_"}
"""Number format -> what names of measurements have of it."""


def cpu_formats() -> tuple[str, ...]:
    """Return the number formats that are measured on this CPU, the fastest first.

    bf16 is among them only where the hardware multiplies it: elsewhere torch emulates it, and measurements of minutes
    take hours.
    """
    return tuple(dict.fromkeys((best_precision(torch.device("cpu")), "fp32")))


@dataclass(frozen=True)
class Value:
    """A figure that stands alone, such as the seconds of a stage."""

    name: str
    value: float
    unit: str
    command: str


@dataclass(frozen=True)
class Ratio:
    """Two figures taken side by side in one run; the ratio says how many times `ours` is better."""

    name: str
    ratio: float
    ours: float
    other: float
    unit: str
    other_is: str
    command: str
