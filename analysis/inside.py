"""Looks inside a diffuser: measures of its prompts, whatever the evaluation wrote, as a table and as curves."""

from collections.abc import Mapping
from math import ceil
from numbers import Real
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis import page
from analysis.figures import WIDTH_INCHES, method_colours, method_label, method_order, style_axes
from promptdiffuser.tracking.store import flatten

_COLUMNS = 3


def inside_table(inside: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row a number: method, measure, position (in a list; 0 for a single number), value.

    Measures may be nested; they get dotted names. What is no number, such as null or text, is left out.
    """
    rows = [
        (method, measure, position, float(number))
        for method, measures in inside.items()
        for measure, value in flatten(measures)
        for position, number in enumerate(value if isinstance(value, list) else [value])
        if isinstance(number, Real)
    ]
    frame = pd.DataFrame(rows, columns=["method", "measure", "position", "value"])
    return frame.astype({"position": "int64", "value": "float64"})


def inside_sections(inside: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the section of the report, or none where nobody looked inside."""
    table = inside_table(inside)
    if table.empty:
        return []
    lengths = table.groupby("measure")["position"].transform("max")
    singles, lists = table[lengths == 0], table[lengths > 0]
    body = (_numbers(singles) if len(singles) else "") + (
        page.image(_curves(lists), f"Curves by position in the list, by method: {', '.join(lists['measure'].unique())}")
        if len(lists)
        else ""
    )
    note = (
        "Measures of the prompts that each method's diffuser makes, by the names under which the evaluation wrote them."
    )
    return [page.section("inside", "Looks inside", body, note)]


def _numbers(singles: pd.DataFrame) -> str:
    methods = method_order(list(singles["method"].unique()))
    wide = singles.pivot_table(index="measure", columns="method", values="value", sort=False)
    rows = [
        page.row(page.text(_readable(measure)), [_significant(wide.loc[measure, method]) for method in methods])
        for measure in wide.index
    ]
    return page.table("Measures of prompts", ("Measure", *map(method_label, methods)), rows)


def _curves(lists: pd.DataFrame) -> Figure:
    measures = list(lists["measure"].unique())
    columns = min(_COLUMNS, len(measures))
    rows = ceil(len(measures) / columns)
    figure = Figure(figsize=(WIDTH_INCHES, 2.5 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    methods = method_order(list(lists["method"].unique()))
    colours = method_colours(methods)
    for axes, measure in zip(grid, measures, strict=False):
        for method in methods:
            own = lists[(lists["measure"] == measure) & (lists["method"] == method)]
            axes.plot(own["position"], own["value"], color=colours[method], marker=".", label=method_label(method))
        style_axes(axes, _readable(measure))
    for axes in grid[len(measures) :]:
        axes.set_axis_off()
    figure.legend(handles=grid[0].lines, loc="outside upper left", ncols=len(methods), frameon=False, fontsize=9)
    return figure


def _readable(measure: str) -> str:
    return measure.replace("_", " ")


def _significant(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.4g}"
