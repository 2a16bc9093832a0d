"""What an evaluation leaves for reports, comparisons and benchmarks: summary.json."""

import json
from typing import Any, TypedDict

from promptdiffuser.errors import UserError

SCHEMA_VERSION = 1
"""Raised when a field changes its name or meaning."""


class TargetSummary(TypedDict):
    """A method's episodes that were asked for one target return."""

    mean: float
    """Mean return over the test tasks."""
    ci_low: float | None
    """Low end of its 95 % interval; None with fewer than three units."""
    ci_high: float | None
    normalised: float
    """0 is the random policy, 1 the family's expert; a mean over the test tasks."""
    diverged: int
    """Episodes whose simulator lost the state."""


class MethodSummary(TargetSummary):
    """A method's episodes at the target return that methods are compared at, and its costs."""

    unit: str | None
    """What the interval resamples: a column of the episodes, or nothing."""
    units: int
    """How many there are for the task that has the fewest."""
    failed_share: float
    success: float
    per_task: dict[str, float]
    """Task -> mean return."""
    seconds: float
    """Of all episodes."""
    tunable_parameters: float
    """As the following costs, the most that a task took."""
    gradient_steps: float
    environment_episodes: float
    memory_gib: float
    seconds_adapt: float
    """Of the adaptations to all tasks."""
    summary: str
    """What the method does, in a few words."""
    targets: dict[str, TargetSummary]
    """Target return -> the episodes that were asked for it."""


class EvaluationSummary(TypedDict):
    """An experiment's evaluation on the test tasks."""

    schema_version: int
    experiment: str
    family: str
    test_tasks: list[int]
    tasks: dict[str, str]
    """Test task -> its label."""
    caution: str
    """What readers must know of the family."""
    has_success: bool
    dataset_digest: str
    protocol: dict[str, Any]
    """The settings of the evaluation."""
    command: str
    seed: int
    references: dict[str, dict[str, float]]
    """Reference policy -> its mean return and normalised score."""
    methods: dict[str, MethodSummary]


def read_summary(text: str) -> EvaluationSummary:
    """Return the content of a summary.json; raises `UserError` if it is damaged or of another version."""
    remedy = "evaluate the experiment again: `promptdiffuser stage evaluate EXPERIMENT`"
    try:
        summary: EvaluationSummary = json.loads(text)
        version = summary.get("schema_version")
    except (ValueError, AttributeError) as error:
        raise UserError(f"the summary of an evaluation is damaged ({error}); {remedy}") from error
    if version != SCHEMA_VERSION:
        raise UserError(
            f"the summary of an evaluation has schema version {version}, this version of promptdiffuser reads "
            f"{SCHEMA_VERSION}; {remedy}"
        )
    if missing := EvaluationSummary.__required_keys__ - summary.keys():
        raise UserError(f"the summary of an evaluation lacks {min(missing)!r}; {remedy}")
    for name, method in summary["methods"].items():
        if absent := MethodSummary.__required_keys__ - method.keys():
            raise UserError(f"the summary of an evaluation lacks {min(absent)!r} of {name}; {remedy}")
    return summary
