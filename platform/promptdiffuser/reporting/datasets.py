"""What a dataset holds: numbers for a table, and histograms of its returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from promptdiffuser.data.manifest import FileRecord, Manifest, TaskRecord
from promptdiffuser.data.store import Dataset
from promptdiffuser.reporting.figures import ACCENT, INK, QUIET_INK, outer_legend, panel_grid, style_axes
from promptdiffuser.statistics.scores import normalise
from promptdiffuser.tasks.experts import QUALITIES, Quality
from promptdiffuser.tasks.families.meta_world import NUM_GOALS
from promptdiffuser.tasks.family import TaskFamily

MAX_LINES = 60
"""Tables with more lines than this show classes of tasks instead of tasks."""

RANDOM, EXPERT = "mean of random actions", "mean of the expert"
_REFERENCES: dict[str, dict[str, Any]] = {
    RANDOM: {"color": INK, "linewidth": 1.4, "linestyle": ":"},
    EXPERT: {"color": "#d55e00", "linewidth": 1.4, "linestyle": "--"},
}
_BINS = 20


@dataclass(frozen=True)
class Line:
    """Episodes of one quality: of a task, of a class of tasks, or all of them."""

    label: str
    quality: Quality
    tasks: int
    episodes: int
    steps: int
    return_min: float
    return_mean: float
    """Over episodes."""
    return_max: float
    normalised: float
    """Mean over tasks: 0 is the random policy's mean return on a task, 1 the expert's."""
    success: float
    """Share of the episodes that solved their task; 0 where the family does not say what success is."""


def table(manifest: Manifest, family: TaskFamily, every_task: bool = False) -> tuple[list[Line], list[Line]]:
    """Return the lines of a table and the totals, one a quality; nothing but the manifest is read.

    One line a task and quality. Of tables longer than `MAX_LINES` one a class of tasks and quality, unless all are
    asked for.
    """
    groups: dict[tuple[int | str, Quality], list[FileRecord]] = {}
    for record in manifest.files.values():
        groups.setdefault((record.task, _quality(record)), []).append(record)
    by_task = every_task or len(groups) <= MAX_LINES
    if not by_task:
        groups = {}
        for record in manifest.files.values():
            groups.setdefault((class_of(family, record.task), _quality(record)), []).append(record)
    lines = [
        _line(f"{name}: {family.label(name)}" if isinstance(name, int) else name, records, manifest.tasks)
        for (name, _), records in sorted(groups.items(), key=lambda item: _order(item[0], item[1]))
    ]
    present = [quality for quality in QUALITIES if any(r.quality == quality for r in manifest.files.values())]
    totals = [
        _line("all", [r for r in manifest.files.values() if r.quality == quality], manifest.tasks)
        for quality in present
    ]
    return lines, totals


def class_of(family: TaskFamily, task: int) -> str:
    """Return the class that a task of a family of several classes belongs to, else "all tasks"."""
    classes: Sequence[str] = family.make_options.get("classes", ())
    return classes[task // NUM_GOALS] if len(classes) > 1 else "all tasks"


def histograms(dataset: Dataset, quality: Quality) -> Figure:
    """Draw the returns of one quality, a panel a task (a class of tasks where there are many); one file at a time."""
    manifest, family = dataset.manifest, dataset.family
    tasks = sorted({record.task for record in manifest.files.values() if record.quality == quality})
    by_task = len(tasks) <= MAX_LINES
    returns: dict[str, list[NDArray[np.float64]]] = {}
    members: dict[str, set[int]] = {}
    for part in dataset.parts(tasks, quality):
        task = int(part.tasks[0])
        name = f"{task}: {family.label(task)}" if by_task else class_of(family, task)
        returns.setdefault(name, []).append(part.returns)
        members.setdefault(name, set()).add(task)
    figure, grid = panel_grid(len(returns), 4, 1.9)
    for axes, (name, values) in zip(grid, returns.items(), strict=True):
        records = [manifest.tasks[task] for task in members[name]]
        references = {
            RANDOM: float(np.mean([record.random_return for record in records])),
            EXPERT: float(np.mean([record.expert_return for record in records])),
        }
        _draw(axes, name, np.concatenate(values), references)
    figure.supxlabel("return", fontsize=8, color=QUIET_INK)
    figure.supylabel("episodes", fontsize=8, color=QUIET_INK)
    title = f"{manifest.family}, quality {quality}: returns of the episodes"
    outer_legend(figure, [Line2D([], [], label=name, **style) for name, style in _REFERENCES.items()], title)
    return figure


def _draw(axes: Axes, title: str, values: NDArray[np.float64], references: Mapping[str, float]) -> None:
    """Draw where the returns lie; references far from them would leave nothing of their shape to see."""
    low, high = float(values.min()), float(values.max())
    # Equal returns, as scripts without a random start give, still need a bar that can be seen.
    margin = max((high - low) * 0.1, abs(low) * 0.01, 1e-3)
    limits = (low - margin, high + margin)
    axes.hist(values, bins=_BINS, range=limits, color=ACCENT)
    for name, value in references.items():
        if limits[0] <= value <= limits[1]:
            axes.axvline(value, **_REFERENCES[name])
    score = normalise(values.mean(), references[RANDOM], references[EXPERT])
    style_axes(axes, f"{title}\nmean {values.mean():.4g}, normalised {score:.2f}")
    axes.set_xlim(*limits)
    axes.locator_params(axis="x", nbins=3)
    axes.locator_params(axis="y", nbins=3, integer=True)


def _line(label: str, records: list[FileRecord], references: Mapping[int, TaskRecord]) -> Line:
    episodes = sum(record.episodes for record in records)
    scores = []
    for task in {record.task for record in records}:
        own = [record for record in records if record.task == task]
        scores.append(normalise(_mean(own), references[task].random_return, references[task].expert_return))
    return Line(
        label=label,
        quality=_quality(records[0]),
        tasks=len(scores),
        episodes=episodes,
        steps=sum(record.steps for record in records),
        return_min=min(record.return_min for record in records),
        return_mean=_mean(records),
        return_max=max(record.return_max for record in records),
        normalised=float(np.mean(scores)),
        success=sum(record.successes for record in records) / episodes,
    )


def _mean(records: list[FileRecord]) -> float:
    return sum(r.return_mean * r.episodes for r in records) / sum(r.episodes for r in records)


def _quality(record: FileRecord) -> Quality:
    return next(quality for quality in QUALITIES if quality == record.quality)


def _order(key: tuple[int | str, Quality], records: list[FileRecord]) -> tuple[int, int]:
    """Order by task (a class by its first task), then from the best quality to the worst."""
    return min(record.task for record in records), list(QUALITIES).index(key[1])
