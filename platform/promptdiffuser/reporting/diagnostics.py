"""Looks inside a diffuser: measures of its prompts, whatever the evaluation wrote, as a table and as curves."""

from collections.abc import Mapping
from itertools import cycle
from math import ceil
from numbers import Real
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from promptdiffuser.reporting import page
from promptdiffuser.reporting.figures import RUN_COLOURS, WIDTH_INCHES, method_label, style_axes
from promptdiffuser.tracking.store import flatten

_COLUMNS = 3


def inside_table(inside: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row a number: training, method, measure, position (in a list; 0 for a single number), value.

    Measures may be nested; they get dotted names. What is no number, such as null or text, is left out.

    Args:
        inside: Name of a training's run -> method -> measure -> number or list.
    """
    rows = [
        (training, method, measure, position, float(number))
        for training, methods in inside.items()
        for method, measures in methods.items()
        for measure, value in flatten(measures)
        for position, number in enumerate(value if isinstance(value, list) else [value])
        if isinstance(number, Real)
    ]
    frame = pd.DataFrame(rows, columns=["training", "method", "measure", "position", "value"])
    return frame.astype({"position": "int64", "value": "float64"})


def inside_sections(inside: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the section of the report, or none where nobody looked inside."""
    table = inside_table(inside)
    if table.empty:
        return []
    table = table.assign(diffuser=table["method"].map(method_label) + ", " + table["training"])
    is_list = table.groupby("measure")["position"].transform("max") > 0
    body = (_numbers(table[~is_list]) if not is_list.all() else "") + (_curves(table[is_list]) if is_list.any() else "")
    note = "Measures of the prompts that each diffuser makes after a training, by the names under which it logged them."
    return [page.section("inside", "Looks inside", body, note)]


def _numbers(singles: pd.DataFrame) -> str:
    wide = singles.pivot_table(index="measure", columns="diffuser", values="value", sort=False)
    rows = [page.row(page.text(_readable(measure)), map(page.cell, values)) for measure, values in wide.T.items()]
    return page.table("Measures of prompts", ("Measure", *wide.columns), rows)


def _curves(lists: pd.DataFrame) -> str:
    measures, diffusers = list(lists["measure"].unique()), list(lists["diffuser"].unique())
    columns = min(_COLUMNS, len(measures))
    rows = ceil(len(measures) / columns)
    figure = Figure(figsize=(WIDTH_INCHES, 2.5 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, measure in zip(grid, measures, strict=False):
        for diffuser, colour in zip(diffusers, cycle(RUN_COLOURS), strict=False):
            own = lists[(lists["measure"] == measure) & (lists["diffuser"] == diffuser)]
            axes.plot(own["position"], own["value"], color=colour, marker=".", label=diffuser)
        style_axes(axes, _readable(measure))
    for axes in grid[len(measures) :]:
        axes.set_axis_off()
    figure.legend(handles=grid[0].lines, loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    return page.image(figure, f"Curves by position in the list, a line for each diffuser: {', '.join(measures)}")


def _readable(measure: str) -> str:
    return measure.replace("_", " ")
