"""Measures of the prompts that each diffuser makes, whatever the evaluation logged, as a table and as curves."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import pandas as pd

from promptdiffuser.reporting.figures import curves, method_label
from promptdiffuser.tracking.store import flatten


def inside_table(inside: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per number: training, method, measure, position (in a list; 0 for a single number), value.

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


def shown_inside(table: pd.DataFrame) -> dict[str, Any]:
    """Return what the page shows of `inside_table`: a frame `numbers` and a figure `lists`, each if there is any."""
    diffuser = table["method"].map(method_label) + ", " + table["training"]
    points = table.assign(line=diffuser, panel=table["measure"].str.replace("_", " "), x=table["position"])
    is_list = points.groupby("panel")["position"].transform("max") > 0
    found: dict[str, Any] = {}
    if (~is_list).any():
        wide = points[~is_list].pivot_table(index="panel", columns="line", values="value", sort=False)
        found["numbers"] = wide.rename_axis("Measure")
    if is_list.any():
        found["lists"] = curves(points[is_list])
    return found
