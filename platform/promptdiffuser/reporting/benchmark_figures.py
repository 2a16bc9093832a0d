"""The figures of a benchmark's page. Every function returns a matplotlib `Figure` and touches no global state."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from promptdiffuser.reporting.figures import (
    FLOOR_LABELS,
    FLOOR_STYLES,
    QUIET_INK,
    RUN_COLOURS,
    WIDTH_INCHES,
    style_axes,
)
from promptdiffuser.statistics.pareto import on_front

_FRONT = "#0072b2"
_LEAST_SECONDS = 0.1
"""Whatever adapts faster stands here; the axis is logarithmic."""

_NAME_HEIGHT, _NAME_SHIFT = 10.0, 4.0
"""Points from a name to the next one, and from a point up to its name."""


def return_for_cost(rows: pd.DataFrame, references: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the return with its interval by the seconds of adapting: of all rows, and close by of the better half.

    A line joins those that no cheaper one beats; they are named.

    Args:
        rows: name, return, return_low, return_high, adapt_s.
        references: Policy -> its mean return. Horizontal lines show the policies that ignore their observations.
    """
    figure = Figure(figsize=(WIDTH_INCHES, 4.4), layout="constrained")
    whole, close = figure.subplots(1, 2)
    shown = rows.assign(adapt_s=rows["adapt_s"].clip(lower=_LEAST_SECONDS))
    front = shown[on_front(shown, "adapt_s", "return")].sort_values("adapt_s")
    for axes in (whole, close):
        _draw(axes, shown, front)
    better = shown[shown["return"] >= shown["return"].median()]
    low, high = better["return_low"].fillna(better["return"]).min(), better["return"].max()
    margin = 0.1 * max(high - low, abs(high) * 0.01)
    close.set_ylim(low - margin, high + 2 * margin)
    _name(close, front[front["return"] >= low])
    for axes in (whole, close):  # the limits are set: lines outside of them are cut
        draw_floors(axes, references)
    whole.legend(frameon=False, fontsize=8, loc="lower right")
    style_axes(whole, "All")
    style_axes(close, "The better half")
    return figure


def draw_floors(axes: Axes, references: Mapping[str, Mapping[str, float]]) -> None:
    """Draw a horizontal line at the mean return of each policy that ignores its observations."""
    for policy, label in FLOOR_LABELS.items():
        level = references[policy]["mean"]
        axes.axhline(level, color=QUIET_INK, linestyle=FLOOR_STYLES[policy], linewidth=1.1, label=label)


def _draw(axes: Axes, rows: pd.DataFrame, front: pd.DataFrame) -> None:
    axes.errorbar(
        rows["adapt_s"],
        rows["return"],
        yerr=_half_widths(rows),
        fmt="o",
        markersize=4,
        color=QUIET_INK,
        elinewidth=0.9,
        alpha=0.8,
    )
    axes.step(front["adapt_s"], front["return"], where="post", color=_FRONT, linewidth=1.5)
    axes.scatter(front["adapt_s"], front["return"], s=42, color=_FRONT, zorder=4)
    axes.set_xscale("log")
    axes.set_xlabel("seconds of one core to adapt to all test tasks", color=QUIET_INK)
    axes.set_ylabel("mean return", color=QUIET_INK)


def _name(axes: Axes, front: pd.DataFrame) -> None:
    """Write names beside their points, each a line of text or more below the one above."""
    above = np.inf
    for row in front.sort_values("return", ascending=False).to_dict("records"):
        point = (row["adapt_s"], row["return"])
        height = float(axes.transData.transform(point)[1]) * 72 / axes.figure.dpi
        shift = min(_NAME_SHIFT, above - _NAME_HEIGHT - height)
        axes.annotate(row["name"], point, xytext=(8, shift), textcoords="offset points", fontsize=8)
        above = height + shift


def _half_widths(rows: pd.DataFrame) -> pd.Series:
    """Return half of each interval, which lies evenly around the return; 0 where it is not known."""
    widths: pd.Series = rows["return"] - rows["return_low"]
    return widths.fillna(0.0)


def return_by_size(rows: pd.DataFrame, references: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the return with its interval by the number of few-shot episodes, a line for each name.

    Args:
        rows: name, few_shot_episodes, return, return_low, return_high.
        references: See `return_for_cost`.
    """
    figure = Figure(figsize=(WIDTH_INCHES, 4.4), layout="constrained")
    axes = figure.subplots()
    for number, (name, own) in enumerate(rows.groupby("name", sort=False)):
        own = own.sort_values("few_shot_episodes")
        colour, style = RUN_COLOURS[number % len(RUN_COLOURS)], ("-", "--", ":", "-.")[number // len(RUN_COLOURS) % 4]
        axes.errorbar(
            own["few_shot_episodes"],
            own["return"],
            yerr=_half_widths(own),
            color=colour,
            linestyle=style,
            marker="o",
            markersize=4,
            elinewidth=0.9,
            label=name,
        )
    draw_floors(axes, references)
    axes.set_xscale("log")
    sizes = sorted(set(rows["few_shot_episodes"]))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("few-shot episodes", color=QUIET_INK)
    axes.set_ylabel("mean return", color=QUIET_INK)
    style_axes(axes)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
