"""The figures of the report. Every function returns a matplotlib `Figure` and touches no global state."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from promptdiffuser.reporting.mlflow_reader import EXPERT, TRAINING
from promptdiffuser.statistics.aggregates import performance_profile
from promptdiffuser.statistics.paired import mean_return
from promptdiffuser.statistics.scores import Runs

# Order of appearance everywhere, and one colour a method (Okabe and Ito's palette, told apart with
# any colour vision; its lightest colours darkened until they have the contrast of 3:1 that WCAG asks of graphics).
METHOD_COLOURS = {
    "prompt-dt": "#56616f",
    "other-task-prompt": "#c77c00",
    "prompt-diffuser": "#0072b2",
    "prompt-diffuser-context": "#009e73",
}
FLOOR_LABELS = {"zero-action": "Zero actions", "mean-action": "Mean action of the training data"}
"""Policies that ignore their observations. Every figure shows them: a method below them has not been shown to learn."""
FLOOR_STYLES: dict[str, Literal[":", "--"]] = {"zero-action": ":", "mean-action": "--"}
METHOD_LABELS = {
    "prompt-dt": "Prompt-DT",
    "other-task-prompt": "Another task's prompt",
    "prompt-diffuser": "Prompt Diffuser",
    "prompt-diffuser-context": "Prompt Diffuser + task context",
    EXPERT: "Expert",
}
_SPARE_COLOURS = ("#c0699a", "#d55e00", "#2f8fce", "#8c6d31")
_SPARE_MARKERS = ("D", "v", "P", "X")
_METHOD_MARKERS = {"prompt-dt": "o", "other-task-prompt": "s", "prompt-diffuser": "^", "prompt-diffuser-context": "D"}
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#c0699a", "#c77c00", "#2f8fce", "#56616f", "#8c6d31")

_INK = "#1f2933"
QUIET_INK = "#616e7c"
_GRID = "#e4e7eb"
WIDTH_INCHES = 9.6
_SMOOTHED_FROM = 100
_PROFILE_FROM = -0.25
"""Scores can lie far below the random policy's 0; a profile that showed them all would show nothing else."""
_PROFILE_POINTS = 201


def method_order(methods: Sequence[str]) -> list[str]:
    """Return the known methods in their fixed order, then the others by name."""
    return [m for m in METHOD_COLOURS if m in methods] + sorted(set(methods) - set(METHOD_COLOURS) - {EXPERT})


def method_label(method: str) -> str:
    """Return a method's name for readers."""
    return METHOD_LABELS.get(method, method)


def method_colours(methods: Sequence[str]) -> dict[str, str]:
    """Return a colour for each method; a method added later gets a spare one."""
    extra = [m for m in method_order(methods) if m not in METHOD_COLOURS]
    return METHOD_COLOURS | {m: _SPARE_COLOURS[i % len(_SPARE_COLOURS)] for i, m in enumerate(extra)}


def learning_curves(metrics: pd.DataFrame) -> Figure:
    """Draw every metric of training by step, a panel for each stage and key."""
    training = metrics[metrics["key"].str.startswith(TRAINING) & np.isfinite(metrics["value"])]
    panels = list(training.groupby(["stage", "key"], sort=False))
    columns = min(3, max(1, len(panels)))
    rows = max(1, ceil(len(panels) / columns))
    figure = Figure(figsize=(WIDTH_INCHES, 2.5 * rows + 0.2), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, ((stage, key), points) in zip(grid, panels, strict=False):
        for index, (run, curve) in enumerate(points.groupby("run", sort=False)):
            _draw_curve(axes, curve, RUN_COLOURS[index % len(RUN_COLOURS)], str(run))
        if _spans_decades(points["value"]):
            axes.set_yscale("log")
        style_axes(axes, f"{stage}: {str(key).removeprefix(TRAINING)}")
        axes.set_xlabel("step", color=QUIET_INK)
        if points["run"].nunique() > 1:
            axes.legend(frameon=False, fontsize=7)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if not panels:
        figure.text(0.5, 0.5, "No training metrics were logged.", ha="center", color=QUIET_INK)
    return figure


def returns_per_task(
    episodes: pd.DataFrame, labels: Mapping[str, str], references: Mapping[str, Mapping[int, float]]
) -> Figure:
    """Draw each method's mean return on each task with its 95 % interval, where that is known.

    Args:
        episodes: One row an episode.
        labels: Task -> a short description.
        references: Policy -> task -> return, of which those in `FLOOR_LABELS` are drawn as lines.
    """
    tasks = sorted(int(task) for task in episodes["task"].unique())
    methods = method_order(list(episodes["method"].unique()))
    colours = method_colours(methods)
    figure = Figure(figsize=(WIDTH_INCHES, 3.8), layout="constrained")
    axes = figure.subplots()
    spacing = 0.7 / max(len(methods), 1)
    for rank, method in enumerate(methods):
        own = episodes[episodes["method"] == method]
        places, intervals = [], []
        for position, task in enumerate(tasks):
            of_task = own[own["task"] == task]
            if len(of_task):
                places.append(position + (rank - (len(methods) - 1) / 2) * spacing)
                intervals.append(mean_return(of_task))
        means = [interval.estimate for interval in intervals]
        axes.vlines(places, [i.low for i in intervals], [i.high for i in intervals], colours[method], linewidth=2)
        axes.scatter(
            places,
            means,
            s=42,
            color=colours[method],
            marker=_marker(method, methods),
            edgecolor="white",
            linewidth=0.8,
            zorder=3,
            label=method_label(method),
        )
    for policy, label in FLOOR_LABELS.items():
        levels = [references[policy].get(task, np.nan) for task in tasks]
        starts, ends = ([place + side for place in range(len(tasks))] for side in (-0.45, 0.45))
        axes.hlines(levels, starts, ends, QUIET_INK, linestyles=FLOOR_STYLES[policy], linewidth=1.1, label=label)
    for boundary in range(1, len(tasks)):
        axes.axvline(boundary - 0.5, color=_GRID, linewidth=0.8)
    axes.set_xticks(range(len(tasks)), [_task_label(task, labels) for task in tasks])
    axes.set_xlim(-0.5, len(tasks) - 0.5)
    axes.set_ylabel("return", color=QUIET_INK)
    style_axes(axes)
    axes.grid(False, axis="x")
    columns = min(4, len(methods) + len(FLOOR_LABELS))
    figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize=9, handletextpad=0.4)
    return figure


def performance_profiles(scores: Mapping[str, Runs], references: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw which share of each method's runs scores above each normalised score, with its 95 % band where it is known.

    Vertical lines mark the scores of policies that ignore their observations.

    The right panel is the left one from the lower quartile of all scores on, where good methods lie close together.
    """
    methods = method_order(list(scores))
    colours = method_colours(methods)
    everything = np.concatenate([scores[method].scores_NJ.ravel() for method in methods])
    low = max(_PROFILE_FROM, min(0.0, float(everything.min())))
    high = max(1.0, float(everything.max())) + 0.02
    figure = Figure(figsize=(WIDTH_INCHES, 3.6), layout="constrained")
    whole, upper = figure.subplots(1, 2, sharey=True)
    for axes, start in ((whole, low), (upper, max(low, float(np.quantile(everything, 0.25))))):
        thresholds = np.linspace(start, high, _PROFILE_POINTS)
        for method in methods:
            profile = performance_profile(scores[method], thresholds)
            axes.fill_between(thresholds, profile.low_T, profile.high_T, color=colours[method], alpha=0.18, linewidth=0)
            axes.plot(thresholds, profile.share_T, color=colours[method], linewidth=1.8, label=method_label(method))
        for policy, label in FLOOR_LABELS.items():
            place = references[policy]["normalised"]
            axes.axvline(place, color=QUIET_INK, linestyle=FLOOR_STYLES[policy], linewidth=1.1, label=label)
        axes.set_xlim(start, high)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("normalised score", color=QUIET_INK)
        style_axes(axes)
    whole.set_ylabel("share of runs above it", color=QUIET_INK)
    figure.legend(
        handles=whole.lines,
        loc="outside upper left",
        ncols=min(4, len(whole.lines)),
        frameon=False,
        fontsize=9,
        handletextpad=0.4,
    )
    return figure


def prompt_plane(prompts: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Draw each method's prompts over the expert's in the expert prompts' first two principal components."""
    features = np.stack(prompts["features"].to_list()).astype(np.float64)
    is_expert = (prompts["method"] == EXPERT).to_numpy()
    mean, axes_2F, shares = _principal_axes(features[is_expert])
    plane = prompts[["method", "task"]].assign(**dict(zip("xy", ((features - mean) @ axes_2F.T).T, strict=True)))
    tasks = sorted(int(task) for task in plane["task"].unique())
    colours = _task_colours(tasks)
    methods = method_order(list(plane["method"].unique()))
    columns = max(1, len(methods)) if len(methods) <= 3 else 2
    rows = max(1, ceil(len(methods) / columns))
    figure = Figure(figsize=(WIDTH_INCHES, 3.5 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    expert = plane[plane["method"] == EXPERT]
    for axes, method in zip(grid, methods, strict=False):
        own = plane[plane["method"] == method]
        axes.scatter(
            expert["x"],
            expert["y"],
            s=30,
            facecolors="none",
            edgecolors=expert["task"].map(colours),
            alpha=0.55,
            lw=0.9,
        )
        axes.scatter(
            own["x"], own["y"], s=24, c=own["task"].map(colours), marker=_marker(method, methods), lw=0, alpha=0.9
        )
        style_axes(axes, method_label(method))
        axes.set_xlabel(f"component 1 ({shares[0]:.0%} of variance)", color=QUIET_INK)
        axes.set_ylabel(f"component 2 ({shares[1]:.0%})", color=QUIET_INK)
        axes.label_outer()
    for axes in grid[len(methods) :]:
        axes.set_axis_off()
    figure.legend(
        handles=_plane_legend(tasks, colours, labels),
        loc="outside upper left",
        ncols=min(len(tasks) + 2, 4),
        frameon=False,
        fontsize=8,
        handletextpad=0.2,
    )
    return figure


def _draw_curve(axes: Axes, curve: pd.DataFrame, colour: str, label: str) -> None:
    """Draw the points as logged; a long curve faintly, under its rolling median."""
    long = len(curve) >= _SMOOTHED_FROM
    axes.plot(
        curve["step"], curve["value"], color=colour, lw=0.8 if long else 1.6, alpha=0.3 if long else 1.0, label=label
    )
    if long:
        smooth = curve["value"].rolling(len(curve) // 20, center=True, min_periods=1).median()
        axes.plot(curve["step"], smooth, color=colour, lw=1.6)


def _spans_decades(values: pd.Series) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() > 20)


def _principal_axes(features_NF: Any) -> tuple[Any, Any, Any]:
    """Return the mean, the first two principal axes (2, F) and their shares of the variance."""
    mean = features_NF.mean(axis=0)
    _, singular, axes_KF = np.linalg.svd(features_NF - mean, full_matrices=False)
    variance = singular**2
    return mean, axes_KF[:2], variance[:2] / max(variance.sum(), np.finfo(np.float64).tiny)


def _task_colours(tasks: Sequence[int]) -> dict[int, str]:
    """Return colours along a scale that no method uses, from dark to light; its pale end is left out."""
    scale = mpl.colormaps["plasma"]
    return {task: to_hex(scale(place)) for task, place in zip(tasks, np.linspace(0.0, 0.85, len(tasks)), strict=True)}


def _plane_legend(tasks: Sequence[int], colours: Mapping[int, str], labels: Mapping[str, str]) -> list[Line2D]:
    def handle(label: str, **style: Any) -> Line2D:
        return Line2D([], [], linestyle="none", markersize=6, label=label, **style)

    kinds = [
        handle("expert prompt", marker="o", markerfacecolor="none", color=QUIET_INK),
        handle("prompt of the method", marker="o", color=QUIET_INK),
    ]
    return kinds + [handle(_task_label(task, labels, ", "), marker="o", color=colours[task]) for task in tasks]


def _task_label(task: int, labels: Mapping[str, str], separator: str = "\n") -> str:
    label = labels.get(str(task))
    return f"task {task}" if label is None else f"task {task}{separator}{label}"


def _marker(method: str, methods: Sequence[str]) -> str:
    extra = [m for m in methods if m not in _METHOD_MARKERS]
    return _METHOD_MARKERS.get(method) or _SPARE_MARKERS[extra.index(method) % len(_SPARE_MARKERS)]


def style_axes(axes: Axes, title: str = "") -> None:
    """Give axes the look of all figures."""
    axes.set_title(title, loc="left", fontsize=10, color=_INK)
    axes.grid(True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.tick_params(which="both", colors=QUIET_INK, labelsize=8, length=0)
