"""Search spaces: dotted fields of an experiment, each with a domain of values.

    {"guidance.weight": Range(0.1, 20.0, log=True), "diffusion.schedule": Choices(("vp", "cosine"))}

A point gives each field a value; `apply` puts it into an experiment, whose own checks then hold for it.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from promptdiffuser.errors import UserError
from promptdiffuser.experiment import Experiment

Value = float | int | str | bool
Point = dict[str, Value]

SWEPT = ("backbone", "pretraining", "diffusion", "denoiser", "guidance", "diffuser", "adaptation")
"""Parts of an experiment whose fields decide what is learnt. The others decide what is measured, on which data, or
where, and results that differ in them cannot be compared."""
CHECKED_POINTS = 1_000
"""Points of which a space is checked before a sweep starts, of the extremes of all fields in combination."""


@dataclass(frozen=True)
class Choices:
    """One of several values."""

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        """Refuse an empty or doubled choice."""
        if not self.values or len(set(self.values)) < len(self.values):
            raise ValueError(f"choices must name each value once and at least one, got {self.values}")

    @property
    def extremes(self) -> tuple[Value, ...]:
        """Values that a space is checked with: all."""
        return self.values

    def draw(self, generator: np.random.Generator) -> Value:
        """Draw a value, all equally likely."""
        return self.values[int(generator.integers(len(self.values)))]

    def holds(self, value: Value) -> bool:
        """Tell whether a value is one of them."""
        return value in self.values

    def __str__(self) -> str:
        """Return the values as a command line gives them."""
        return ",".join(map(_text_of, self.values))

    def nearest(self, value: Value) -> Value:
        """Return a value as it is, or the first one for a stranger."""
        return value if self.holds(value) else self.values[0]


@dataclass(frozen=True)
class Range:
    """A number between two others; whole if both ends are."""

    low: float
    high: float
    log: bool = False
    """Equally likely in the logarithm."""

    def __post_init__(self) -> None:
        """Refuse an empty range, and a logarithm of what has none."""
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"a range needs a finite low end below its high end, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must be above 0, got {self.low}")

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers only, both ends among them."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def extremes(self) -> tuple[Value, ...]:
        """Values that a space is checked with: both ends."""
        return self.low, self.high

    def draw(self, generator: np.random.Generator) -> Value:
        """Draw a number."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        drawn = math.exp(generator.uniform(math.log(low), math.log(high))) if self.log else generator.uniform(low, high)
        return self.nearest(drawn)

    def holds(self, value: Value) -> bool:
        """Tell whether a value lies in the range; a whole range holds whole numbers only."""
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        return not self.whole or value == int(value)

    def __str__(self) -> str:
        """Return the range as a command line gives it."""
        return f"{'log:' if self.log else ''}{_text_of(self.low)}..{_text_of(self.high)}"

    def nearest(self, value: Value) -> Value:
        """Return the number of the range that is nearest to another."""
        bounded = min(max(float(value), self.low), self.high)
        return round(bounded) if self.whole else bounded


Domain = Choices | Range
Space = dict[str, Domain]


def change_space(space: Space, changes: Sequence[str]) -> Space:
    """Return a space with fields changed as a command line says.

    Args:
        space: The space.
        changes: `FIELD=a,b,c` (choices), `FIELD=low..high` or `FIELD=log:low..high` add a field or replace its domain;
            `FIELD=` drops a field.

    Raises:
        UserError: A change cannot be read, or drops a field that the space has not.
    """
    changed = dict(space)
    for text in changes:
        field, equals, domain = text.partition("=")
        if not (field and equals):
            raise UserError(
                f"{text!r} is no field of a space; write FIELD=a,b,c or FIELD=low..high or FIELD=log:low..high, "
                "or FIELD= to drop a field"
            )
        if domain:
            changed[field] = _parse_domain(text, domain)
        elif changed.pop(field, None) is None:
            raise UserError(f"{text!r} drops a field that the space has not; its fields are {', '.join(changed)}")
    return changed


def _parse_domain(text: str, domain: str) -> Domain:
    try:
        if ".." in domain:
            low, high = (_read(end) for end in domain.removeprefix("log:").split("..", 1))
            return Range(low, high, log=domain.startswith("log:"))
        return Choices(tuple(_read(value) for value in domain.split(",")))
    except (TypeError, ValueError) as error:
        raise UserError(f"{text!r} is no field of a space: {error}") from error


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def apply(point: Mapping[str, Value], experiment: Experiment) -> Experiment:
    """Return the experiment with the point's values.

    Raises:
        UserError: A field does not exist or may not be swept, or the values are impossible, alone or together.
    """
    document = dataclasses.asdict(experiment)
    for field, value in point.items():
        *parts, name = field.split(".")
        if not parts or parts[0] not in SWEPT:
            raise UserError(f"the space names {field!r}; fields of these parts can be swept: {', '.join(SWEPT)}")
        section = document
        for part in parts:
            if not isinstance(section.get(part), dict):
                raise UserError(f"the space names {field!r}, but an experiment has no part {part!r} with fields there")
            section = section[part]
        if name not in section:
            raise UserError(f"the space names {field!r}, which does not exist; its neighbours are {', '.join(section)}")
        section[name] = value
    try:
        return Experiment.from_json(json.dumps(document))
    except UserError as error:
        raise UserError(f"the space holds the impossible point {describe(point)}: {error}") from error


def value_of(experiment: Experiment, field: str) -> Value:
    """Return what an experiment has in a dotted field."""
    value: Any = experiment
    for part in field.split("."):
        value = getattr(value, part)
    return value  # type: ignore[no-any-return]


def check_space(space: Space, experiment: Experiment) -> None:
    """Apply the extremes of all fields in combination; raises what `apply` raises."""
    if not space:
        raise UserError("the space is empty; name at least one field to sweep")
    for point in itertools.islice(_product({name: domain.extremes for name, domain in space.items()}), CHECKED_POINTS):
        apply(point, experiment)


def grid(space: Space) -> Iterator[Point]:
    """Yield every combination, the last field fastest; all domains must be `Choices`."""
    for field, domain in space.items():
        if not isinstance(domain, Choices):
            raise UserError(f"a grid needs choices, but {field!r} is a range; give it values or search at random")
    return _product({field: domain.extremes for field, domain in space.items()})


def _product(values: Mapping[str, tuple[Value, ...]]) -> Iterator[Point]:
    return (dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values()))


def draw(space: Space, generator: np.random.Generator) -> Point:
    """Draw a point, field by field."""
    return {field: domain.draw(generator) for field, domain in space.items()}


def holds(space: Space, point: Mapping[str, Value]) -> bool:
    """Tell whether a point has the fields of the space, with values that it holds."""
    return point.keys() == space.keys() and all(domain.holds(point[field]) for field, domain in space.items())


def describe(point: Mapping[str, Value]) -> str:
    """Name a point: `guidance.weight=5 diffusion.schedule=vp`."""
    return " ".join(f"{field}={_text_of(value)}" for field, value in point.items())


def describe_space(space: Space) -> list[str]:
    """Return a line for each field: its name and its domain as a command line gives it."""
    width = max(map(len, space))
    return [f"  {field:<{width}}  {domain}" for field, domain in space.items()]


def _text_of(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
