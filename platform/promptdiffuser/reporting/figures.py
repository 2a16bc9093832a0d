"""The figures of the pages. Every function returns a matplotlib `Figure` and touches no global state."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from promptdiffuser.methods import METHODS
from promptdiffuser.methods.adaptation import colour_of
from promptdiffuser.reporting.mlflow_reader import EXPERT, TRAINING
from promptdiffuser.statistics.aggregates import performance_profile
from promptdiffuser.statistics.pareto import on_front
from promptdiffuser.statistics.scores import Runs

# Okabe and Ito's palette, which any colour vision tells apart; its lightest colours are darkened until they have the
# contrast of 3:1 that WCAG asks of graphics.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#c0699a", "#c77c00", "#2f8fce", "#56616f", "#8c6d31")
FLOOR_LABELS = {"zero-action": "Zero actions", "mean-action": "Mean action of the training data"}
"""Policies that ignore their observations. Figures show them: a method below them has not been shown to learn."""
FLOOR_STYLES: dict[str, Literal[":", "--"]] = {"zero-action": ":", "mean-action": "--"}

INK, QUIET_INK, GRID, ACCENT = "#1f2933", "#616e7c", "#e4e7eb", "#0072b2"
WIDTH_INCHES = 9.6
_SCALE = "viridis"
_MARKED_BELOW, _SMOOTHED_FROM = 20, 100
_PROFILE_FROM = -0.25
"""Scores can lie far below the random policy's 0; a profile that showed them all would show nothing else."""
_PROFILE_POINTS = 201
_NAME_HEIGHT, _NAME_SHIFT = 10.0, 4.0
"""Points from a name to the next one, and from a point up to its name."""


def method_order(methods: Sequence[str]) -> list[str]:
    """Return methods in the order of their registry, then those that are not registered here by name."""
    return [name for name in METHODS if name in methods] + sorted(set(methods) - set(METHODS) - {EXPERT})


def method_label(method: str) -> str:
    """Return a method's name for readers."""
    if method == EXPERT:
        return "Expert"
    return METHODS[method].label if method in METHODS else method


def method_colours(methods: Sequence[str]) -> dict[str, str]:
    """Return each method's own colour, the same on every page; of more methods than eyes tell apart, none."""
    if len(methods) > len(COLOURS):
        return {}
    return {name: METHODS[name].colour if name in METHODS else colour_of(name) for name in methods}


def forest(panels: Mapping[str, pd.DataFrame], floors: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """Draw one row per method, the best on top: in every panel its estimate with its 95 % interval, where known.

    Args:
        panels: Title -> frame with the name of the method as index and the columns estimate, low and high. The first
            panel decides the order; the others may lack methods.
        floors: Level of the policies that ignore their observations (rows) by title, drawn as vertical lines. A panel
            without any shows differences and has a line at zero.
        colours: Name -> colour; those without one are drawn in a common colour.
    """
    first = next(iter(panels.values()))
    names = list(first.sort_values("estimate", ascending=False, kind="stable", na_position="last").index)
    columns = ceil(len(panels) / ceil(len(panels) / 4))
    figure, grid = panel_grid(len(panels), columns, 0.21 * len(names) + 0.75, sharey=True)
    for axes, (title, frame) in zip(grid, panels.items(), strict=True):
        for row, (estimate, low, high) in enumerate(frame.reindex(names)[["estimate", "low", "high"]].to_numpy()):
            colour = colours.get(names[row], ACCENT)
            axes.hlines(row, low, high, colour, linewidth=1.6)
            axes.plot(estimate, row, "o", color=colour, markersize=4.5)
        if title in floors:
            _draw_floors(axes, floors[title], vertical=True)
        else:
            axes.axvline(0, color=QUIET_INK, linewidth=1.1)
        style_axes(axes, title)
        axes.set_yticks(range(len(names)), [method_label(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=4)
    lines = {line.get_label(): line for axes in grid for line in axes.lines}
    outer_legend(figure, [lines[label] for label in FLOOR_LABELS.values() if label in lines])
    return figure


def curves(points: pd.DataFrame) -> Figure:
    """Draw the lines of every panel: the points as logged; a long line faintly, under its rolling median.

    Args:
        points: One row per point with the columns panel, line, x and value.
    """
    panels = list(points[np.isfinite(points["value"])].groupby("panel", sort=False))
    figure, grid = panel_grid(len(panels), 3, 2.5)
    styles = _line_styles(points["line"].unique())
    for axes, (panel, own) in zip(grid, panels, strict=False):
        for line, curve in own.groupby("line", sort=False):
            _draw_curve(axes, curve, **styles[line], label=str(line))
        if own["value"].min() > 0 and own["value"].max() / own["value"].min() > 20:
            axes.set_yscale("log")
        style_axes(axes, str(panel))
    if not panels:
        figure.text(0.5, 0.5, "Nothing was logged.", ha="center", color=QUIET_INK)
    elif len(styles) > 1:
        outer_legend(figure, [Line2D([], [], label=str(line), **style) for line, style in styles.items()])
    return figure


def learning_curves(metrics: pd.DataFrame) -> Figure:
    """Draw every metric of training by step, a panel for each stage and key, a line for each run."""
    training = metrics[metrics["key"].str.startswith(TRAINING)]
    panel = training["stage"] + ": " + training["key"].str.removeprefix(TRAINING)
    return curves(training.assign(panel=panel, line=training["run"], x=training["step"]))


def _draw_curve(axes: Axes, curve: pd.DataFrame, label: str, **style: Any) -> None:
    long = len(curve) >= _SMOOTHED_FROM
    points: dict[str, Any] = (
        {"lw": 0.8, "alpha": 0.3} if long else {"lw": 1.6, "marker": "." if len(curve) < 20 else ""}
    )
    axes.plot(curve["x"], curve["value"], label=label, **style, **points)
    if long:
        smooth = curve["value"].rolling(len(curve) // 20, center=True, min_periods=1).median()
        axes.plot(curve["x"], smooth, lw=1.6, **style)


def performance_profiles(scores: Mapping[str, Runs], floors: "pd.Series[float]") -> Figure:
    """Draw which share of each method's runs scores above each normalised score, with its 95 % band where it is known.

    Vertical lines mark the scores of policies that ignore their observations. The right panel is the left one from the
    lower quartile of all scores on, where good methods lie close together.

    Args:
        scores: Method -> its scores, of no more methods than there are `COLOURS`.
        floors: Normalised scores of policies that ignore their observations.
    """
    methods = method_order(list(scores))
    colours = method_colours(methods)
    everything = np.concatenate([scores[method].scores_NJ.ravel() for method in methods])
    low = max(_PROFILE_FROM, min(0.0, float(everything.min())))
    high = max(1.0, float(everything.max())) + 0.02
    figure, panels = panel_grid(2, 2, 3.6, sharey=True)
    for axes, start in zip(panels, (low, max(low, float(np.quantile(everything, 0.25)))), strict=True):
        thresholds = np.linspace(start, high, _PROFILE_POINTS)
        for method in methods:
            profile = performance_profile(scores[method], thresholds)
            axes.fill_between(thresholds, profile.low_T, profile.high_T, color=colours[method], alpha=0.18, linewidth=0)
            axes.plot(thresholds, profile.share_T, color=colours[method], linewidth=1.8, label=method_label(method))
        _draw_floors(axes, floors, vertical=True)
        axes.set_xlim(start, high)
        axes.set_ylim(0, 1.02)
        style_axes(axes, x="normalised score", y="share of runs above it")
        axes.label_outer()
    outer_legend(figure, panels[0].lines)
    return figure


def prompt_plane(prompts: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Draw each method's prompts over the expert's in the expert prompts' first two principal components."""
    features = np.stack(prompts["features"].to_list()).astype(np.float64)
    is_expert = (prompts["method"] == EXPERT).to_numpy()
    mean, axes_2F, shares = _principal_axes(features[is_expert])
    plane = prompts[["method", "task"]].assign(**dict(zip("xy", ((features - mean) @ axes_2F.T).T, strict=True)))
    tasks = sorted(int(task) for task in plane["task"].unique())
    # A scale that no method uses, from dark to light without its pale end.
    scale = mpl.colormaps["plasma"](np.linspace(0.0, 0.85, len(tasks)))
    colours = {task: to_hex(colour) for task, colour in zip(tasks, scale, strict=True)}
    methods = method_order(list(plane["method"].unique()))
    columns = 2 if len(methods) <= 4 else 3
    figure, grid = panel_grid(len(methods), columns, 7.0 / columns, sharex=True, sharey=True)
    expert = plane[plane["method"] == EXPERT]
    for axes, method in zip(grid, methods, strict=False):
        own = plane[plane["method"] == method]
        ring = expert["task"].map(colours)
        axes.scatter(expert["x"], expert["y"], s=30, facecolors="none", edgecolors=ring, alpha=0.55, lw=0.9)
        axes.scatter(own["x"], own["y"], s=24, c=own["task"].map(colours), lw=0, alpha=0.9)
        style_axes(axes, method_label(method))
    dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 6}
    kinds = [
        Line2D([], [], label="expert prompt", markerfacecolor="none", color=QUIET_INK, **dot),
        Line2D([], [], label="prompt of the method", color=QUIET_INK, **dot),
    ]
    named = [  # of many tasks, the two ends of the scale
        Line2D([], [], label=task_label(task, labels), color=colours[task], **dot)
        for task in (tasks if len(tasks) <= 2 * len(COLOURS) else (tasks[0], tasks[-1]))
    ]
    outer_legend(figure, [*kinds, *named])
    figure.supxlabel(f"component 1 ({shares[0]:.0%} of variance)", fontsize=9, color=QUIET_INK)
    figure.supylabel(f"component 2 ({shares[1]:.0%} of variance)", fontsize=9, color=QUIET_INK)
    return figure


def _principal_axes(features_NF: Any) -> tuple[Any, Any, Any]:
    """Return the mean, the first two principal axes (2, F) and their shares of the variance."""
    mean = features_NF.mean(axis=0)
    _, singular, axes_KF = np.linalg.svd(features_NF - mean, full_matrices=False)
    variance = singular**2
    return mean, axes_KF[:2], variance[:2] / max(variance.sum(), np.finfo(np.float64).tiny)


def task_label(task: int, labels: Mapping[str, str]) -> str:
    """Return a task's number and, where it has one, its description."""
    return f"Task {task}, {labels[str(task)]}" if str(task) in labels else f"Task {task}"


def value_for_cost(
    rows: pd.DataFrame, cost: str, value: str, labels: tuple[str, str], floors: "pd.Series[float] | None" = None
) -> Figure:
    """Draw a value with its interval by its cost: of all rows, and close by of the better half.

    A line joins those that no cheaper one beats; they are named.

    Args:
        rows: name, the two columns and, where known, the value's bounds in columns with _low and _high; `faint` marks
            rows that are drawn as crosses.
        cost: Column of the horizontal axis, logarithmic where costs span decades.
        value: Column of the vertical axis.
        labels: Of the two axes.
        floors: Values of policies that ignore their observations, drawn as horizontal lines.
    """
    known = rows[np.isfinite(rows[value].astype("float64"))]
    shown = known.assign(low=known.get(f"{value}_low", known[value]).fillna(known[value]))
    front = shown[on_front(shown, cost, value)].sort_values(cost)
    figure, (whole, close) = panel_grid(2, 2, 4.4)
    faint = shown.get("faint", pd.Series(False, index=shown.index))
    for axes, title in ((whole, "All"), (close, "The better half")):
        for own, marker, label in ((shown[~faint], "o", "finished"), (shown[faint], "x", "stopped early")):
            bars = own[value] - own["low"]  # intervals lie evenly around the value
            dots: dict[str, Any] = {"fmt": marker, "markersize": 4, "elinewidth": 0.9, "alpha": 0.8}
            axes.errorbar(own[cost], own[value], bars, color=QUIET_INK, label=label if faint.any() else None, **dots)
        axes.step(front[cost], front[value], where="post", color=ACCENT, linewidth=1.5)
        axes.scatter(front[cost], front[value], s=42, color=ACCENT, zorder=4)
        if 0 < 20 * shown[cost].min() < shown[cost].max():
            axes.set_xscale("log")
        style_axes(axes, title, *labels)
    better = shown[shown[value] >= shown[value].median()]
    low, high = better["low"].min(), better[value].max()
    margin = 0.1 * max(high - low, abs(high) * 0.01)
    close.set_ylim(low - margin, high + 2 * margin)
    _name(close, front[front[value] >= low], cost, value)
    if floors is not None:
        _draw_floors(whole, floors)
        _draw_floors(close, floors)
    if whole.get_legend_handles_labels()[0]:
        whole.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _name(axes: Axes, front: pd.DataFrame, cost: str, value: str) -> None:
    """Write names beside their points, each a line of text or more below the one above."""
    above = np.inf
    for row in front.sort_values(value, ascending=False).to_dict("records"):
        point = (row[cost], row[value])
        height = float(axes.transData.transform(point)[1]) * 72 / axes.figure.dpi
        shift = min(_NAME_SHIFT, above - _NAME_HEIGHT - height)
        axes.annotate(row["name"], point, xytext=(8, shift), textcoords="offset points", fontsize=8)
        above = height + shift


def return_by_size(rows: pd.DataFrame, floors: "pd.Series[float]") -> Figure:
    """Draw the return with its interval by the number of few-shot episodes, a line for each name.

    Args:
        rows: name, few_shot_episodes, return, return_low.
        floors: Mean returns of policies that ignore their observations, drawn as horizontal lines.
    """
    figure, (axes,) = panel_grid(1, 1, 4.4)
    for name, style in _line_styles(rows["name"].unique()).items():
        own = rows[rows["name"] == name].sort_values("few_shot_episodes")
        bars = (own["return"] - own["return_low"]).fillna(0.0)
        dots: dict[str, Any] = {"marker": "o", "markersize": 4, "elinewidth": 0.9, "label": name}
        axes.errorbar(own["few_shot_episodes"], own["return"], bars, **dots, **style)
    _draw_floors(axes, floors)
    axes.set_xscale("log")
    sizes = sorted(set(rows["few_shot_episodes"]))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    style_axes(axes, x="few-shot episodes", y="mean return")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def heat_map(table: pd.DataFrame, objective: str) -> Figure:
    """Draw the objective by two fields, its number in every cell."""
    figure, (axes,) = panel_grid(1, 1, 1.3 + 0.4 * table.shape[0])
    values = table.to_numpy(np.float64)
    image = axes.imshow(values, cmap=_SCALE, aspect="auto")
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < middle else "black"
            axes.text(column, row, f"{value:.4g}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(table.shape[1]), [str(name) for name in table.columns])
    axes.set_yticks(range(table.shape[0]), [str(name) for name in table.index])
    style_axes(axes, x=str(table.columns.name), y=str(table.index.name))
    axes.grid(False)
    figure.colorbar(image, ax=axes, label=objective)
    return figure


def parallel_coordinates(trials: pd.DataFrame, fields: Sequence[str], objective: str) -> Figure:
    """Draw every trial as a line through the values of its fields to its objective; trials stopped early are dashed."""
    known = trials[np.isfinite(trials[objective])].sort_values(objective)
    columns = [*fields, objective]
    figure, (axes,) = panel_grid(1, 1, 3.8)
    places = np.column_stack([_place(axes, position, known[name]) for position, name in enumerate(columns)])
    scale = ScalarMappable(Normalize(known[objective].min(), known[objective].max()), mpl.colormaps[_SCALE])
    for line, value, state in zip(places, known[objective], known["state"], strict=True):
        finished = state == "finished"
        width, alpha, style = (1.8, 0.95, "-") if finished else (0.8, 0.55, "--")
        axes.plot(range(len(columns)), line, color=scale.to_rgba(value), linewidth=width, alpha=alpha, linestyle=style)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks([])
    axes.set_xlim(-0.15, len(columns) - 0.6)
    style_axes(axes)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    figure.colorbar(scale, ax=axes, label=objective)
    return figure


def _place(axes: Axes, position: int, values: pd.Series) -> NDArray[np.float64]:
    """Return where values lie on their axis between 0 and 1, and label the axis."""
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        numbers = values.to_numpy(np.float64)
        labels = [(value, f"{value:.4g}") for value in _few(np.unique(numbers))]
        # Values that span decades were meant by their order of magnitude.
        if numbers.min() > 0 and numbers.max() / numbers.min() > 50:
            numbers = np.log(numbers)
            labels = [(float(np.log(value)), text) for value, text in labels]
    else:
        names = sorted(set(values.astype(str)))
        numbers = values.astype(str).map(names.index).to_numpy(np.float64)
        labels = list(enumerate(names))
    low, span = numbers.min(), max(np.ptp(numbers), np.finfo(np.float64).tiny)
    for value, text in labels:
        axes.text(position + 0.02, (value - low) / span, text, fontsize=7, color=QUIET_INK, va="bottom")
    return np.asarray((numbers - low) / span)


def _few(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return all of a few values, else the ends and the middle."""
    return values if len(values) <= 6 else values[[0, len(values) // 2, -1]]


def importance_bars(importance: pd.DataFrame) -> Figure:
    """Draw the importance of each field, alone and with its interactions."""
    figure, (axes,) = panel_grid(1, 1, 0.9 + 0.42 * len(importance))
    shown = importance.iloc[::-1]
    axes.barh(shown.index, shown["total"], color=ACCENT, alpha=0.35, label="with interactions")
    axes.barh(shown.index, shown["alone"], color=ACCENT, height=0.4, label="alone")
    axes.set_xlim(0, 1)
    style_axes(axes, x="share")
    axes.grid(False, axis="y")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _line_styles(names: Sequence[Any]) -> dict[Any, dict[str, Any]]:
    """Return a colour and a dash for each line; dashes change when colours run out."""
    return {
        name: {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": ("-", "--", ":", "-.")[number // len(COLOURS) % 4],
        }
        for number, name in enumerate(names)
    }


def _draw_floors(axes: Axes, levels: "pd.Series[float]", vertical: bool = False) -> None:
    """Draw a line at the level of each policy that ignores its observations.

    A policy so far below everything else that the axis would more than double in length is left out.
    """
    draw, low, high = (axes.axvline, *axes.get_xlim()) if vertical else (axes.axhline, *axes.get_ylim())
    for policy, level in levels[levels > 2 * low - high].items():
        look: dict[str, Any] = {"color": QUIET_INK, "linestyle": FLOOR_STYLES[str(policy)], "linewidth": 1.1}
        draw(level, label=FLOOR_LABELS[str(policy)], **look)


def panel_grid(panels: int, columns: int, height: float, **shared: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure with its panels, row by row; each row is as high as given, in inches."""
    columns = min(columns, max(1, panels))
    rows = max(1, ceil(panels / columns))
    figure = Figure(figsize=(WIDTH_INCHES, height * rows + 0.2 * (rows > 1)), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, **shared).ravel())
    for axes in grid[panels:]:
        axes.set_axis_off()
    return figure, grid[: max(1, panels)]


def outer_legend(figure: Figure, handles: Sequence[Any], title: str | None = None) -> None:
    """Put a legend above all panels, if there is anything to explain."""
    look: dict[str, Any] = {"frameon": False, "fontsize": 9, "handletextpad": 0.4, "alignment": "left"}
    if handles:
        figure.legend(handles=handles, loc="outside upper left", ncols=min(4, len(handles)), title=title, **look)


def style_axes(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Give axes the look of all figures, with the labels given."""
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(which="both", colors=QUIET_INK, labelsize=8, length=0)
    for axis, label in ((axes.xaxis, x), (axes.yaxis, y)):
        if label:
            axis.set_label_text(label, color=QUIET_INK)
