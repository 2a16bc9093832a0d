"""The form of a benchmark's result."""

from dataclasses import dataclass


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
