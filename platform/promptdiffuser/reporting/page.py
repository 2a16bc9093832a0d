"""Pieces of a page: HTML of what a section holds, and numbers as readers see them."""

import base64
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import matplotlib as mpl
from matplotlib.figure import Figure
from mlflow.entities import Run

from promptdiffuser.reporting.figures import FLOOR_LABELS, method_label
from promptdiffuser.statistics.intervals import Interval

LOCAL_UI = "http://127.0.0.1:5000"
"""Where `make ui` serves MLflow's pages."""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} - Prompt Diffuser</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
<p class="kicker">Prompt Diffuser</p>
<h1>{title}</h1>
<p class="question">{question}</p>
</header>
{sections}
</main>
<script>
{script}</script>
</body>
</html>
"""


def whole(title: str, question: str, sections: Iterable[str]) -> str:
    """Return the page; nothing in it is fetched from elsewhere."""
    style, script = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    body = "\n".join(sections)
    return _PAGE.format(title=text(title), question=text(question), style=style, sections=body, script=script)


def section(name: str, title: str, body: str, note: str = "") -> str:
    """Return a section with its anchor."""
    heading = f'<h2 id="{name}-title">{text(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">\n{heading}\n{body}{caption(note)}\n</section>'


def caption(note: str) -> str:
    """Return small print, nothing for an empty note."""
    return f'<p class="note">{text(note)}</p>' if note else ""


def listing(sentences: Iterable[str]) -> str:
    """Return a list of sentences."""
    return f"<ul>{''.join(f'<li>{text(sentence)}</li>' for sentence in sentences)}</ul>"


def table(label: str, heads: Iterable[str], rows: Iterable[str]) -> str:
    """Return a table that scrolls sideways where it is wider than the screen; the label is for screen readers."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in heads)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(label)}"><table aria-label="{text(label)}">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def row(heading: str, cells: Iterable[str]) -> str:
    """Return a table row with its heading; both are HTML."""
    return f'<tr><th scope="row">{heading}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def facts(values: Mapping[str, object]) -> str:
    """Return a table of keys and values."""
    rows = (row(text(key), [text(value)]) for key, value in values.items())
    return f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>'


def method_row(method: str, colour: str, cells: Iterable[str], best: bool = False) -> str:
    """Return a table row that starts with a method's name; the cells are HTML."""
    html_row = row(f'<span class="dot" style="background:{colour}"></span>{text(method_label(method))}', cells)
    return html_row.replace("<tr>", '<tr class="best">') if best else html_row


def floor_rows(cells_of: Callable[[str], Iterable[str]]) -> list[str]:
    """Return a table row for each policy that ignores its observations; the cells of a policy are HTML."""
    return [
        row(text(label), cells_of(policy)).replace("<tr>", '<tr class="reference">')
        for policy, label in FLOOR_LABELS.items()
    ]


def estimate(interval: Interval, digits: int = 2) -> str:
    """Return an estimate with its bounds."""
    return f'{number(interval.estimate, digits)} <span class="interval">{bounds(interval, digits)}</span>'


def whiskers(intervals: Sequence[Interval], colours: Sequence[str]) -> list[str]:
    """Draw intervals on a scale of their own, a picture each; an estimate without bounds is a dot."""
    places = [value for each in intervals for value in (each.low, each.estimate, each.high) if isfinite(value)]
    low, high = min(places, default=0.0), max(places, default=0.0)
    return [
        _whisker(interval, low, high, colour) if isfinite(interval.estimate) and high > low else ""
        for interval, colour in zip(intervals, colours, strict=True)
    ]


def _whisker(interval: Interval, low: float, high: float, colour: str) -> str:
    left, middle, right = (
        6 + 128 * (value - low) / (high - low) for value in (interval.low, interval.estimate, interval.high)
    )
    line = f'<line x1="{left:.1f}" x2="{right:.1f}" y1="7" y2="7" stroke="{colour}" stroke-width="2"/>'
    return (
        f'<svg width="140" height="14" aria-hidden="true">{line if interval.is_known else ""}'
        f'<circle cx="{middle:.1f}" cy="7" r="4.5" fill="{colour}"/></svg>'
    )


def image(figure: Figure, description: str) -> str:
    """Embed a figure as an image, so that the identifiers inside two figures cannot collide."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "report"}):  # with no date either, the same numbers give the same page
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="Figure">'
        f'<img alt="{text(description)}" src="data:image/svg+xml;base64,{data}"></div>'
    )


def run_link(uri: str, run: Run, label: str = "") -> str:
    """Return a link to a run's page in MLflow, with the run's id if it has no label."""
    info = run.info
    return link(run_address(uri, info.experiment_id, info.run_id), label or info.run_id)


def run_address(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page in MLflow."""
    return f"{server(uri)}/#/experiments/{experiment_id}/runs/{run_id}"


def link(address: str, label: str) -> str:
    """Return a link."""
    return f'<a href="{text(address)}">{text(label)}</a>'


def server(uri: str) -> str:
    """Return where a browser finds a store's pages: the server, without a password; of a file, where `make ui` is."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return LOCAL_UI
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def text(value: object) -> str:
    """Return text with HTML's signs escaped."""
    return html.escape(str(value))


def rank(value: float | None) -> float:
    """Return a number to sort by; what is missing comes last."""
    return value if value is not None and isfinite(value) else float("-inf")


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with some digits after the point; "–" for one that is missing or not finite."""
    return "–" if value is None or not isfinite(value) else f"{value:,.{digits}f}"


def cell(value: object) -> str:
    """Return whatever a frame holds, numbers with four significant digits."""
    if not isinstance(value, float):
        return text(value)
    if not isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def bounds(interval: Interval, digits: int = 2) -> str:
    """Return the two bounds of an interval; "–" where they are not known."""
    return f"[{number(interval.low, digits)}, {number(interval.high, digits)}]" if interval.is_known else "–"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share."""
    return "–" if value is None else f"{value:.{digits}%}"


def count(value: int | None) -> str:
    """Return a whole number."""
    return "–" if value is None else f"{value:,}"


def when(milliseconds: int) -> str:
    """Return MLflow's time in UTC."""
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M} UTC"
