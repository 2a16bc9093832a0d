"""Pages from templates, and numbers as readers see them.

The files in templates/ say how a page looks. Python gives them frames, figures, sentences and facts.
"""

import base64
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from math import isfinite
from numbers import Real
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import matplotlib as mpl
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from promptdiffuser.reporting.figures import FLOOR_LABELS, method_colours, method_label
from promptdiffuser.statistics.intervals import Interval

LOCAL_UI = "http://127.0.0.1:5000"
"""Where `make ui` serves MLflow's pages."""
_TEMPLATES = Environment(
    loader=PackageLoader("promptdiffuser.reporting"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """Return the page of a template; nothing in it is fetched from elsewhere."""
    return _TEMPLATES.get_template(template).render(**values)


class _Table(Styler):  # type: ignore[misc]
    template_html = _TEMPLATES.get_template("table.html")


def table(
    frame: pd.DataFrame,
    label: str,
    columns: Sequence[tuple[str, str, str]] = (),
    spec: str = "",
    best: Sequence[str] = (),
    floors: pd.DataFrame | None = None,
    links: Sequence[str] = (),
    coloured: bool = False,
) -> Markup:
    """Return an HTML table whose rows are headed by the frame's index; its name is the heading of the first column.

    Args:
        frame: A column that has others of the same name with _low and _high shows an estimate with its bounds.
        label: For screen readers.
        columns: Name in the frame, heading and format of each column shown; those that the frame lacks are left out.
            All columns under their own names if none are given.
        spec: Format of the columns if none are given, see `shown`.
        best: Columns whose highest value is bold.
        floors: Rows of the policies that ignore their observations, which stand below the others.
        links: Address that the heading of each row links to.
        coloured: Whether rows are methods with a dot in their colour in the figures.
    """
    kept = [column for column in columns if column[0] in frame] or [(str(name), str(name), spec) for name in frame]
    values = {
        heading: [shown(value, spec) for value in (*_values(frame, name), *_values(floors, name))]
        for name, heading, spec in kept
    }
    index = [*frame.index, *(FLOOR_LABELS[policy] for policy in ([] if floors is None else floors.index))]
    bold = {
        (int(row), column)
        for column, (name, _, _) in enumerate(kept)
        if name in best
        for row in (frame[name] == frame[name].max()).to_numpy().nonzero()[0]
    }
    return Markup(
        _Table(pd.DataFrame(values, index=index, dtype=object))
        .format_index(method_label)
        .to_html(
            label=label,
            heading=frame.index.name or "",
            own=len(frame),
            bold=bold,
            links=links,
            colours=method_colours(list(frame.index)) if coloured else {},
        )
    )


def _values(frame: pd.DataFrame | None, name: str) -> list[Any]:
    if frame is None:
        return []
    if name not in frame:
        return [""] * len(frame)
    if f"{name}_low" not in frame:
        return list(frame[name])
    return [Interval(*row) for row in frame[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False)]


def shown(value: Any, spec: str = "") -> str | tuple[str, str]:
    """Return a value as a table shows it: of an interval, the estimate and the bounds; "–" for a missing number.

    Args:
        value: Interval, number or text.
        spec: Python's format of numbers; without one, four significant digits of a float.
    """
    if isinstance(value, Interval):
        return (str(shown(value.estimate, spec)), bounds(value, spec)) if isfinite(value.estimate) else "–"
    if value is None or value is pd.NA or (isinstance(value, float) and not isfinite(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    if not spec and isinstance(value, float):
        spec = ",.0f" if abs(value) >= 1000 else ".4g"
    return format(value, spec)


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with some digits after the point; "–" for one that is missing or not finite."""
    return str(shown(value, f",.{digits}f"))


def bounds(interval: Interval, spec: str = ",.2f") -> str:
    """Return the two bounds of an interval; "–" where they are not known."""
    return f"[{shown(interval.low, spec)}, {shown(interval.high, spec)}]" if interval.is_known else "–"


def embedded(figure: Figure) -> str:
    """Return the address of a figure as an image, so that the identifiers inside two figures cannot collide."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "report"}):  # with no date either, the same numbers give the same page
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def run_address(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page in MLflow."""
    return f"{server(uri)}/#/experiments/{experiment_id}/runs/{run_id}"


def server(uri: str) -> str:
    """Return where a browser finds a store's pages: the server, without a password; of a file, where `make ui` is."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return LOCAL_UI
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def when(milliseconds: int) -> str:
    """Return MLflow's time in UTC."""
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M} UTC"


_TEMPLATES.filters |= {"table": table, "embedded": embedded}
