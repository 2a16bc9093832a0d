"""The figures of a sweep's report. Every function returns a matplotlib `Figure` and touches no global state."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from promptdiffuser.reporting.figures import QUIET_INK, WIDTH_INCHES, style_axes

_COLOURS = "viridis"
_ACCENT = "#0072b2"
_STOPPED_STYLE: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.55, "linestyle": "--"}
_FINISHED_STYLE: dict[str, Any] = {"linewidth": 1.8, "alpha": 0.95, "linestyle": "-"}


def heat_map(table: pd.DataFrame, objective: str) -> Figure:
    """Draw the objective by two fields, its number in every cell."""
    figure = Figure(
        figsize=(min(WIDTH_INCHES, 2.2 + 1.3 * table.shape[1]), 1.3 + 0.5 * table.shape[0]), layout="constrained"
    )
    axes = figure.subplots()
    values = table.to_numpy(np.float64)
    image = axes.imshow(values, cmap=_COLOURS, aspect="auto")
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < middle else "black"
            axes.text(column, row, f"{value:.4g}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(table.shape[1]), [str(name) for name in table.columns])
    axes.set_yticks(range(table.shape[0]), [str(name) for name in table.index])
    axes.set_xlabel(str(table.columns.name), color=QUIET_INK)
    axes.set_ylabel(str(table.index.name), color=QUIET_INK)
    style_axes(axes)
    axes.grid(False)
    figure.colorbar(image, ax=axes, label=objective)
    return figure


def parallel_coordinates(trials: pd.DataFrame, fields: Sequence[str], objective: str) -> Figure:
    """Draw every trial as a line through the values of its fields to its objective; trials stopped early are dashed."""
    known = trials[np.isfinite(trials[objective])].sort_values(objective)
    columns = [*fields, objective]
    figure = Figure(figsize=(WIDTH_INCHES, 3.8), layout="constrained")
    axes = figure.subplots()
    places = np.column_stack([_place(axes, position, known[name]) for position, name in enumerate(columns)])
    scale = ScalarMappable(Normalize(known[objective].min(), known[objective].max()), mpl.colormaps[_COLOURS])
    for line, value, state in zip(places, known[objective], known["state"], strict=True):
        style = _FINISHED_STYLE if state == "finished" else _STOPPED_STYLE
        axes.plot(range(len(columns)), line, color=scale.to_rgba(value), **style)
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
    """Draw the share of variance of each field, alone and with its interactions."""
    figure = Figure(figsize=(WIDTH_INCHES * 0.75, 0.9 + 0.42 * len(importance)), layout="constrained")
    axes = figure.subplots()
    shown = importance.iloc[::-1]
    axes.barh(shown.index, shown["total"], color=_ACCENT, alpha=0.35, label="with interactions")
    axes.barh(shown.index, shown["alone"], color=_ACCENT, height=0.4, label="alone")
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the variance of the result", color=QUIET_INK)
    style_axes(axes)
    axes.grid(False, axis="y")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def cost_front(trials: pd.DataFrame, cost: str, objective: str) -> Figure:
    """Draw the trials' objective by cost and the front: what no other trial beats at its cost or below."""
    figure = Figure(figsize=(WIDTH_INCHES * 0.75, 3.6), layout="constrained")
    axes = figure.subplots()
    known = trials[np.isfinite(trials[objective])]
    for states, marker, label in (
        (known["state"] == "finished", "o", "finished"),
        (known["state"] != "finished", "x", "stopped early"),
    ):
        own = known[states]
        axes.scatter(own[cost], own[objective], marker=marker, color=QUIET_INK, s=28, label=label, zorder=3)
    front = known[known["front"]].sort_values(cost)
    axes.step(front[cost], front[objective], where="post", color=_ACCENT, linewidth=1.8, label="front")
    axes.scatter(front[cost], front[objective], s=60, facecolors="none", edgecolors=_ACCENT, linewidth=1.6, zorder=4)
    axes.set_xlabel(cost, color=QUIET_INK)
    axes.set_ylabel(objective, color=QUIET_INK)
    style_axes(axes)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure
