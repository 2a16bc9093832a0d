"""What a paired difference allows to say, in the same words in every report, comparison and benchmark."""

from collections.abc import Mapping

from promptdiffuser.statistics.intervals import LEAST_UNITS, Interval
from promptdiffuser.statistics.paired import PairedDifference
from promptdiffuser.statistics.scores import Level

UNITS: Mapping[Level | None, str] = {
    "training_seed": "trainings",
    "prompt_source": "different prompts per task",
    "start": "initial states per task",
    None: "a single unit",
}


def verdict(paired: PairedDifference, method: str, baseline: str) -> str:
    """Return in one sentence, without its full stop, what may be said of a method, and the interval's worst case."""
    if paired.verdict == "equal":
        return f"{method} and {baseline} have equal returns on all {paired.num_tasks} tasks"
    here = paired.on_these_tasks
    found = (
        f"{signed(here.estimate)} {_bounds(here)} over {counted(paired.level, paired.units)}, better on "
        f"{paired.tasks_better} of {paired.num_tasks} tasks"
    )
    if paired.verdict == "too few trainings":
        return (
            f"{method} minus {baseline} is {found}; not enough trainings for a verdict "
            f"({paired.trainings} of {LEAST_UNITS})"
        )
    if paired.verdict == "constant":
        return (
            f"{method} minus {baseline} is {signed(here.estimate)} in every one of {paired.trainings} trainings; "
            "nothing varies between them, so there is no interval"
        )
    chance = "p < 0.001" if paired.p_value < 0.001 else f"p = {paired.p_value:.2g}"
    if paired.verdict == "undecided":
        if here.excludes(0):
            chance += ", adjusted for the number of comparisons, which the interval is not"
        return (
            f"no significant difference: {method} minus {baseline} is {found} ({chance}); {_worst_case(method, here)}"
        )
    return f"{method} is {paired.verdict} than {baseline}: {found} ({chance}){_elsewhere(paired.on_tasks_like_these)}"


SHORT_UNITS: Mapping[Level | None, str] = {
    "training_seed": "trainings",
    "prompt_source": "prompts",
    "start": "initial states",
    None: "a single unit",
}
"""For cells of tables, whose captions say the rest."""


def counted(level: Level | None, units: int, names: Mapping[Level | None, str] = UNITS) -> str:
    """Return the number of units and their name, such as "5 trainings"."""
    return names[level] if level is None else f"{units} {names[level]}"


def signed(value: float) -> str:
    """Return a number with its sign."""
    return f"{value:+,.2f}"


def _bounds(interval: Interval) -> str:
    return f"[{signed(interval.low)}, {signed(interval.high)}]" if interval.is_known else "(interval not known)"


def _worst_case(method: str, interval: Interval) -> str:
    ways = []
    if interval.low < 0:
        ways.append(f"up to {-interval.low:,.2f} worse")
    if interval.high > 0:
        ways.append(f"up to {interval.high:,.2f} better")
    return f"{method} may be {' or '.join(ways)}"


def _elsewhere(interval: Interval) -> str:
    if not interval.is_known:
        return "; the difference on other tasks is unknown"
    return "" if interval.excludes(0) else f"; on tasks like these {_bounds(interval)} includes zero"
