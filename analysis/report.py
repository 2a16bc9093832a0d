"""Write the report of an experiment: one self-contained HTML page, made from MLflow alone.

python analysis/report.py --experiment quickstart --output report.html
"""

import base64
import html
import io
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: Python has put this folder on the path, the package lies in the one above
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import matplotlib as mpl
import tyro
from matplotlib.figure import Figure
from mlflow.entities import Run

from analysis.figures import (
    learning_curves,
    method_colours,
    method_label,
    method_order,
    prompt_plane,
    returns_per_task,
)
from analysis.intervals import paired_difference
from analysis.runs import ExperimentResults, load_experiment
from promptdiffuser.errors import UserError
from promptdiffuser.tracking.store import flatten, resolve_uri

QUESTION = (
    "On tasks never seen in training, which way of making a prompt adapts the frozen policy best, at what cost, "
    "and how sure are we?"
)
BASELINE = "prompt-dt"
FEW_TASKS = 6
"""Below this number even a method that wins on every task does not pass a sign test at 5 %."""

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


def write_report(uri: str, experiment_name: str, path: Path, parent_run_id: str | None = None) -> Path:
    """Write the report of an experiment (its newest run, if none is given) and return its path."""
    page = render(load_experiment(uri, experiment_name, parent_run_id))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def render(results: ExperimentResults) -> str:
    """Return the page as HTML text."""
    summary = results.summary
    labels = summary["tasks"]
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    sections = [
        _section("conclusions", "What the numbers allow", _list(conclusions(results))),
        _section("methods", "Methods compared", _method_table(summary)),
        _section("tasks", "Mean return by task", _task_table(summary)),
        _section(
            "returns",
            "Returns and their intervals",
            _image(returns_per_task(results.episodes, labels), "Mean return of each method on each test task"),
            "Bars are 95\u00a0% bootstrap intervals: the prompts of a task are resampled, then the episodes of each.",
        ),
        _section(
            "prompts",
            "Prompts of the methods against the expert's",
            _image(prompt_plane(results.prompts, labels), "Prompts in the plane of two principal components"),
            "Principal components of the expert prompts alone: segments of expert data of the same tasks, normalised "
            "as the policy sees them. A method whose points leave the expert's writes prompts that no expert made.",
        ),
        _section("training", "Training", _image(learning_curves(results.metrics), "Training metrics by step")),
        _section("provenance", "Provenance", _provenance(results)),
    ]
    title = f"{results.name}: {summary['family']}, {len(summary['test_tasks'])} test tasks"
    return _PAGE.format(title=_text(title), question=_text(QUESTION), style=style, sections="\n".join(sections))


def conclusions(results: ExperimentResults) -> list[str]:
    """Return sentences computed from the numbers: what they show, and where they stop."""
    methods: dict[str, Any] = results.summary["methods"]
    ranked = sorted(methods, key=lambda name: _rank(methods[name]["mean"]), reverse=True)
    best = ranked[0]
    num_tasks = len(results.summary["test_tasks"])
    caution = results.summary["caution"]
    sentences = ([caution] if caution else []) + [
        f"{method_label(best)} has the highest mean return: {_number(methods[best]['mean'])} {_bounds(methods[best])} "
        f"over {num_tasks} test tasks; adapting takes it {_number(methods[best].get('seconds_adapt'))} s and "
        f"{_count(methods[best].get('tunable_parameters'))} tunable parameters."
    ]
    rival = BASELINE if best != BASELINE and BASELINE in methods else next(iter(ranked[1:]), None)
    if rival is not None:
        sentences.append(_overlap_sentence(best, rival, methods))
    if BASELINE in methods:
        others = [name for name in method_order(list(methods)) if name != BASELINE]
        sentences += [_paired_sentence(results, name) for name in others]
    if num_tasks < FEW_TASKS:
        sentences.append(
            f"With {num_tasks} tasks the paired intervals are indicative only: two equal methods would come out in the "
            f"same order on all of them {2 / 2**num_tasks:.0%} of the time."
        )
    sentences.append(
        f"All of this comes from one training seed ({results.summary['seed']}): the intervals cover the choice of "
        "prompts and the episodes run with them, not the variation between trainings."
    )
    return sentences


def _overlap_sentence(best: str, rival: str, methods: Mapping[str, Any]) -> str:
    overlap = methods[best]["ci_low"] <= methods[rival]["ci_high"]
    verdict = (
        "overlap, so these two intervals alone do not separate them"
        if overlap
        else "do not overlap: they are separated"
    )
    return (
        f"The 95\u00a0% intervals of {method_label(best)} {_bounds(methods[best])} and {method_label(rival)} "
        f"{_bounds(methods[rival])} {verdict}."
    )


def _paired_sentence(results: ExperimentResults, method: str) -> str:
    paired = paired_difference(results.episodes, method, BASELINE)
    interval = paired.interval
    if not paired.settled:
        verdict = "zero lies inside, so no difference is shown"
    else:
        verdict = "zero lies outside, a gain" if interval.mean > 0 else "zero lies outside, a loss"
    return (
        f"Paired by task, {method_label(method)} minus {method_label(BASELINE)} is {interval.mean:+.2f} "
        f"[{interval.low:+.2f}, {interval.high:+.2f}] (95\u00a0%, bootstrap over {paired.num_tasks} tasks), better on "
        f"{paired.tasks_better} of {paired.num_tasks}: {verdict}."
    )


def _method_table(summary: Mapping[str, Any]) -> str:
    methods: dict[str, Any] = summary["methods"]
    order = method_order(list(methods))
    colours = method_colours(order)
    best = max(order, key=lambda name: _rank(methods[name]["mean"]))
    bounds = [(methods[name]["ci_low"], methods[name]["ci_high"]) for name in order]
    ends = [end for pair in bounds for end in pair if end is not None and isfinite(end)]
    low, high = (min(ends), max(ends)) if ends else (0.0, 0.0)
    rows = []
    for name in order:
        row = methods[name]
        rows.append(
            f'<tr class="{"best" if name == best else ""}">'
            f"{_method_heading(name, colours[name])}"
            f'<td>{_number(row["mean"])} <span class="interval">{_bounds(row)}</span></td>'
            f"<td>{_whisker(row, low, high, colours[name])}</td>"
            f"<td>{_number(row['normalised'])}</td>"
            f"<td>{_percent(row['success'] if summary['has_success'] else row['failed_share'])}</td>"
            f"<td>{_number(row['seconds_adapt'])}</td><td>{_count(row['tunable_parameters'])}</td></tr>"
        )
    heads = (
        "Method",
        "Mean return, 95\u00a0% interval",
        "",
        "Normalised",
        "Solved" if summary["has_success"] else "Failed",
        "Adapt,\u00a0s",
        "Tunable parameters",
    )
    return _table(heads, rows)


def _task_table(summary: Mapping[str, Any]) -> str:
    methods: dict[str, Any] = summary["methods"]
    order = method_order(list(methods))
    colours = method_colours(order)
    tasks = [str(task) for task in summary["test_tasks"]]
    best = {task: max(order, key=lambda name: _rank(methods[name]["per_task"].get(task))) for task in tasks}
    rows = []
    for name in order:
        cells = [
            f"<td>{f'<strong>{number}</strong>' if best[task] == name else number}</td>"
            for task in tasks
            for number in [_number(methods[name]["per_task"].get(task))]
        ]
        rows.append(f"<tr>{_method_heading(name, colours[name])}{''.join(cells)}</tr>")
    labels = summary["tasks"]
    heads = [f"Task {task}, {labels[task]}" if task in labels else f"Task {task}" for task in tasks]
    return _table(("Method", *heads), rows)


def _provenance(results: ExperimentResults) -> str:
    summary, parent = results.summary, results.parent
    facts = {
        "command": summary["command"],
        "seed": summary["seed"],
        "dataset digest": summary["dataset_digest"],
        "test tasks": ", ".join(map(str, summary["test_tasks"])),
        **{f"protocol: {key}": value for key, value in flatten(summary["protocol"])},
        "MLflow run": parent.info.run_id,
        "started": _when(parent.info.start_time),
    }
    tags = {key: value for key, value in parent.data.tags.items() if not key.startswith("mlflow.")}
    runs = [_run_row(stage, run) for stage, stage_runs in results.stages.items() for run in stage_runs]
    return (
        _facts(facts)
        + "<details open><summary>Stages</summary>"
        + _table(("Stage", "Run", "Status", "Started", "Seconds"), runs)
        + "</details><details><summary>All parameters and versions</summary>"
        + _facts({**dict(sorted(parent.data.params.items())), **dict(sorted(tags.items()))})
        + "</details>"
    )


def _run_row(stage: str, run: Run) -> str:
    info = run.info
    seconds = None if info.end_time is None else (info.end_time - info.start_time) / 1000
    cells = (info.run_name, info.status, _when(info.start_time), _number(seconds, 0))
    return f"<tr><th>{_text(stage)}</th>{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>"


def _section(name: str, title: str, body: str, note: str = "") -> str:
    caption = f'<p class="note">{_text(note)}</p>' if note else ""
    return f'<section id="{name}">\n<h2>{_text(title)}</h2>\n{body}{caption}\n</section>'


def _list(sentences: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(sentence)}</li>' for sentence in sentences)}</ul>"


def _table(heads: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{_text(text)}</th>" for text in heads)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _facts(facts: Mapping[str, object]) -> str:
    rows = (f"<tr><th>{_text(key)}</th><td>{_text(value)}</td></tr>" for key, value in facts.items())
    return f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>'


def _method_heading(name: str, colour: str) -> str:
    return f'<th><span class="dot" style="background:{colour}"></span>{_text(method_label(name))}</th>'


def _whisker(row: Mapping[str, Any], low: float, high: float, colour: str) -> str:
    """Draw an interval on the scale that all methods share."""
    if not isfinite(_rank(row["mean"])) or high <= low:
        return ""
    left, middle, right = (6 + 128 * (row[key] - low) / (high - low) for key in ("ci_low", "mean", "ci_high"))
    return (
        f'<svg width="140" height="14" aria-hidden="true"><line x1="{left:.1f}" x2="{right:.1f}" y1="7" y2="7" '
        f'stroke="{colour}" stroke-width="2"/><circle cx="{middle:.1f}" cy="7" r="4.5" fill="{colour}"/></svg>'
    )


def _image(figure: Figure, description: str) -> str:
    """Embed a figure as an image, so that the identifiers inside two figures cannot collide."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "report"}):  # with no date either, the same numbers give the same page
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<div class="scroll"><img alt="{_text(description)}" src="data:image/svg+xml;base64,{data}"></div>'


def _text(value: object) -> str:
    return html.escape(str(value))


def _rank(value: float | None) -> float:
    return value if value is not None and isfinite(value) else float("-inf")


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _bounds(row: Mapping[str, Any]) -> str:
    return f"[{_number(row['ci_low'])}, {_number(row['ci_high'])}]"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _when(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True)
class Arguments:
    """Write the report of an experiment from MLflow (`MLFLOW_TRACKING_URI`, else ./mlflow.db)."""

    experiment: str
    """Name of the MLflow experiment, such as quickstart."""
    output: Path = Path("report.html")
    """File to write."""
    parent_run_id: str | None = None
    """Run of the whole experiment; the newest one if not given."""


def main() -> int:
    """Run the command line and return the exit status."""
    arguments = tyro.cli(Arguments)
    try:
        path = write_report(resolve_uri(), arguments.experiment, arguments.output, arguments.parent_run_id)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
