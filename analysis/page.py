"""Pieces of the report's page: HTML of what a section holds, and numbers as readers see them."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from analysis.figures import method_label
from analysis.intervals import Interval

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
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
</body>
</html>
"""


def whole(title: str, question: str, sections: Iterable[str]) -> str:
    """Return the page; nothing in it is fetched from elsewhere."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return _PAGE.format(title=text(title), question=text(question), style=style, sections="\n".join(sections))


def section(name: str, title: str, body: str, note: str = "") -> str:
    """Return a section with its anchor."""
    return f'<section id="{name}">\n<h2>{text(title)}</h2>\n{body}{caption(note)}\n</section>'


def caption(note: str) -> str:
    """Return small print, nothing for an empty note."""
    return f'<p class="note">{text(note)}</p>' if note else ""


def listing(sentences: Iterable[str]) -> str:
    """Return a list of sentences."""
    return f"<ul>{''.join(f'<li>{text(sentence)}</li>' for sentence in sentences)}</ul>"


def table(heads: Iterable[str], rows: Iterable[str]) -> str:
    """Return a table that scrolls sideways where it is wider than the screen."""
    head = "".join(f"<th>{text(name)}</th>" for name in heads)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def facts(values: Mapping[str, object]) -> str:
    """Return a table of keys and values."""
    rows = (f"<tr><th>{text(key)}</th><td>{text(value)}</td></tr>" for key, value in values.items())
    return f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>'


def method_row(method: str, colour: str, cells: Iterable[str], best: bool = False) -> str:
    """Return a table row that starts with a method's name; the cells are HTML."""
    heading = f'<th><span class="dot" style="background:{colour}"></span>{text(method_label(method))}</th>'
    return f'<tr class="{"best" if best else ""}">{heading}{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def estimate(interval: Interval, digits: int = 2) -> str:
    """Return an estimate with its bounds."""
    return f'{number(interval.estimate, digits)} <span class="interval">{bounds(interval, digits)}</span>'


def whiskers(intervals: Sequence[Interval], colours: Sequence[str]) -> list[str]:
    """Draw intervals on a scale of their own, a picture each."""
    drawn = [interval for interval in intervals if isfinite(rank(interval.estimate))]
    low = min((interval.low for interval in drawn), default=0.0)
    high = max((interval.high for interval in drawn), default=0.0)
    return [
        _whisker(interval, low, high, colour) if interval in drawn and high > low else ""
        for interval, colour in zip(intervals, colours, strict=True)
    ]


def _whisker(interval: Interval, low: float, high: float, colour: str) -> str:
    left, middle, right = (
        6 + 128 * (value - low) / (high - low) for value in (interval.low, interval.estimate, interval.high)
    )
    return (
        f'<svg width="140" height="14" aria-hidden="true"><line x1="{left:.1f}" x2="{right:.1f}" y1="7" y2="7" '
        f'stroke="{colour}" stroke-width="2"/><circle cx="{middle:.1f}" cy="7" r="4.5" fill="{colour}"/></svg>'
    )


def image(figure: Figure, description: str) -> str:
    """Embed a figure as an image, so that the identifiers inside two figures cannot collide."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "report"}):  # with no date either, the same numbers give the same page
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<div class="scroll"><img alt="{text(description)}" src="data:image/svg+xml;base64,{data}"></div>'


def text(value: object) -> str:
    """Return text with HTML's signs escaped."""
    return html.escape(str(value))


def rank(value: float | None) -> float:
    """Return a number to sort by; what is missing comes last."""
    return value if value is not None and isfinite(value) else float("-inf")


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with some digits after the point."""
    return "–" if value is None else f"{value:,.{digits}f}"


def bounds(interval: Interval, digits: int = 2) -> str:
    """Return the two bounds of an interval."""
    return f"[{number(interval.low, digits)}, {number(interval.high, digits)}]"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share."""
    return "–" if value is None else f"{value:.{digits}%}"


def count(value: int | None) -> str:
    """Return a whole number."""
    return "–" if value is None else f"{value:,}"


def when(milliseconds: int) -> str:
    """Return MLflow's time in UTC."""
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M} UTC"
