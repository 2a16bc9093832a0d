"""Figures hold every method, and lines only where they can be read."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from promptdiffuser.methods import METHODS
from promptdiffuser.reporting.figures import COLOURS, forest, method_colours, method_label


def estimates(names: list[str], first: float) -> pd.DataFrame:
    values = first - np.arange(len(names), dtype=float)
    return pd.DataFrame({"estimate": values, "low": values - 1, "high": values + 1}, index=names)


def test_a_forest_has_one_readable_row_for_every_method() -> None:
    """The best on top, names apart from each other, and a method that a panel lacks leaves its row empty."""
    names = list(METHODS)
    panels = {"Mean return": estimates(names, -40.0), "Difference": estimates(names[1:], 5.0)}
    figure = forest(panels, pd.DataFrame(), method_colours(names))
    figure.draw_without_rendering()
    left, right = figure.axes
    labels = left.get_yticklabels()
    assert [label.get_text() for label in labels] == list(map(method_label, names))
    boxes = [label.get_window_extent() for label in labels]
    assert all(lower.y1 <= upper.y0 for upper, lower in pairwise(boxes))
    drawn = [line.get_xdata()[0] for line in right.lines if line.get_marker() == "o"]
    assert len(drawn) == len(names)
    assert np.isnan(drawn[0])


@pytest.mark.parametrize(("level", "shown"), [(-500.0, False), (-60.0, True), (500.0, True)])
def test_only_a_floor_far_below_all_methods_is_left_out(level: float, shown: bool) -> None:
    """One above them says that nothing was learned, however far away it is."""
    floors = pd.DataFrame({"Mean return": {"zero-action": level}})
    (axes,) = forest({"Mean return": estimates(list("abcdefghijkl"), -40.0)}, floors, {}).axes
    assert ("Zero actions" in [line.get_label() for line in axes.lines]) == shown


def test_each_method_has_a_colour_of_its_own_or_none_has() -> None:
    few = ["prompt-diffuser", *(f"method-{number}" for number in range(len(COLOURS) - 1))]
    colours = method_colours(few)
    assert len(set(colours.values())) == len(few) == len(COLOURS)
    assert colours["prompt-diffuser"] == METHODS["prompt-diffuser"].colour
    assert method_colours([*few, "another"]) == {}
