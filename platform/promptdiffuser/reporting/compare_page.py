"""The page of a comparison."""

import json
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from promptdiffuser.evaluation.scores import reference_scores, reference_task_returns
from promptdiffuser.reporting import page
from promptdiffuser.reporting.compare import Comparison
from promptdiffuser.reporting.evidence import interval_of
from promptdiffuser.reporting.figures import learning_curves, method_colours, method_label, returns_per_task
from promptdiffuser.reporting.tables import write_tables
from promptdiffuser.statistics.intervals import Interval
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.family import TaskFamily

QUESTION = "Which run is better, by how much, at what cost, and how sure are we?"


def write_comparison(comparison: Comparison, uri: str, folder: Path) -> Path:
    """Write index.html with every table as CSV and Parquet beside it, and return the page's path."""
    write_tables(comparison.tables(), folder)
    path = folder / "index.html"
    path.write_text(render(comparison, uri), encoding="utf-8")
    return path


def render(comparison: Comparison, uri: str) -> str:
    """Return the page as HTML text."""
    sides = comparison.sides
    sections = [
        page.section("verdict", "Verdict", _verdict(comparison)),
        page.section("runs", "What is compared", _runs(comparison, uri)),
        page.section(
            "settings",
            "What differs",
            _settings(comparison),
            "Settings of the experiments and versions they ran with; all others are equal.",
        ),
        page.section(
            "returns", "Returns", _returns(comparison), "Mean return over tasks, with its 95\u00a0% interval."
        ),
        page.section(
            "differences",
            f"Difference from {sides[0].name} on the same episodes",
            _differences(comparison),
            "Episodes with equal task, prompt number and simulator seed are paired. Intervals are Student's, – where "
            "too few units would make them a guess. On these tasks: the tasks are fixed, the trainings (prompts where "
            "there is one training) are random. On tasks like them: the tasks are random too. P-values are adjusted "
            "for the number of pairs by Holm's method. The last column is the probability that a run scores higher "
            "than one of the reference on the same task.",
        ),
        page.section("tasks", "Return by task", _tasks(comparison)),
        page.section("costs", "Costs", _costs(comparison), "Means over trainings, as logged; seconds end in _s."),
        page.section("training", "Training", _curves(comparison)),
    ]
    return page.whole(" and ".join(side.name for side in sides) + " compared", QUESTION, sections)


def _verdict(comparison: Comparison) -> str:
    warnings = "".join(f'<p class="warning">{page.text(warning)}</p>' for warning in comparison.warnings)
    return warnings + page.listing(comparison.verdicts)


def _runs(comparison: Comparison, uri: str) -> str:
    rows = [
        page.row(
            page.text(side.name),
            (page.text(side.title), "<br>".join(page.run_link(uri, run) for run in side.runs)),
        )
        for side in comparison.sides
    ]
    return page.table("Runs compared", ("Side", "Run", "In MLflow"), rows) + f"<p>{_in_mlflow(comparison, uri)}</p>"


def _in_mlflow(comparison: Comparison, uri: str) -> str:
    """Return the link to MLflow's own view of the same runs."""
    runs = [run for side in comparison.sides for run in side.runs]
    experiments = sorted({run.info.experiment_id for run in runs})
    address = (
        f"{page.server(uri)}/#/compare-runs?runs={quote(json.dumps([run.info.run_id for run in runs]))}"
        f"&experiments={quote(json.dumps(experiments))}"
    )
    return page.link(address, "The same runs in MLflow's own comparison")


def _settings(comparison: Comparison) -> str:
    settings = comparison.settings
    if settings.empty:
        return page.caption("Nothing.")
    rows = [page.row(page.text(name), map(page.text, values)) for name, values in settings.T.items()]
    return page.table("Settings that differ", ("Setting", *settings.columns), rows)


def _returns(comparison: Comparison) -> str:
    rows = comparison.returns.to_dict("records")
    names = [_name(comparison, row["side"], row["method"]) for row in rows]
    colours = method_colours(names)
    pictures = page.whiskers([interval_of(row, "return") for row in rows], [colours[name] for name in names])
    lines = [
        page.method_row(
            name,
            colours[name],
            (
                page.estimate(interval_of(row, "return")),
                picture,
                page.number(row["normalised"], 3),
                page.count(row["episodes"]),
                page.count(row["trainings"]),
            ),
        )
        for name, row, picture in zip(names, rows, pictures, strict=True)
    ]
    references = reference_scores(_family(comparison))
    lines += page.floor_rows(
        lambda policy: (
            page.number(references[policy]["mean"]),
            "",
            page.number(references[policy]["normalised"], 3),
            *[""] * 2,
        )
    )
    heads = ("Run", "Mean return, 95\u00a0% interval", "", "Normalised", "Episodes", "Trainings")
    return page.table("Returns", heads, lines)


def _differences(comparison: Comparison) -> str:
    rows = [
        page.row(
            page.text(
                f"{_name(comparison, row.side, row.method)} − {_name(comparison, row.reference, row.reference_method)}"
            ),
            (
                page.number(row.difference),
                page.bounds(Interval(row.difference, row.low, row.high)),
                page.bounds(Interval(row.difference, row.low_on_tasks_like_these, row.high_on_tasks_like_these)),
                f"{row.tasks_better} of {row.tasks}",
                row.over,
                row.verdict,
                page.number(row.p_value, 3),
                page.estimate(Interval(row.probability_of_improvement, row.probability_low, row.probability_high)),
            ),
        )
        for row in comparison.differences.itertuples()
    ]
    heads = (
        "Pair",
        "Difference",
        "On these tasks",
        "On tasks like them",
        "Tasks better",
        "Over",
        "Verdict",
        "p",
        "Probability of improvement",
    )
    return page.table("Paired differences", heads, rows)


def _tasks(comparison: Comparison) -> str:
    labels = comparison.sides[0].task_labels
    episodes = pd.concat(
        own.assign(method=_name(comparison, side.name, method))
        for side in comparison.sides
        for method in side.methods
        for own in [side.of_method(method)]
    )
    figure = returns_per_task(episodes, labels, reference_task_returns(_family(comparison)))
    tasks = comparison.tasks
    rows = [
        page.row(page.text(f"{task}, {labels[str(task)]}" if str(task) in labels else task), map(page.number, values))
        for task, values in tasks.T.items()
    ]
    heads = ("Task", *(_name(comparison, side, method) for side, method in tasks.columns))
    return page.image(
        figure, "Points and bars: mean return of each run on each task and its 95 % interval"
    ) + page.table("Return by task", heads, rows)


def _costs(comparison: Comparison) -> str:
    costs = comparison.costs
    rows = [
        page.row(
            page.text(_name(comparison, side, method)), (page.number(None if pd.isna(v) else v, 1) for v in values)
        )
        for (side, method), values in zip(costs.index, costs.to_numpy(), strict=True)
    ]
    return page.table("Costs", ("Run", *costs.columns), rows)


def _curves(comparison: Comparison) -> str:
    """Draw a panel for each stage and metric, a line for each side and, where it has several, training."""
    curves = comparison.curves
    name = curves["side"]
    for part in ("training_seed", "run"):
        several = curves.groupby(["side", "stage"])[part].transform("nunique") > 1
        name = name.where(~several, name + " " + curves[part].astype(str))
    figure = learning_curves(curves.assign(run=name))
    return page.image(figure, "Curves: metrics of training by step, a line for each run")


def _family(comparison: Comparison) -> TaskFamily:
    return get_family(comparison.sides[0].conditions["family"])


def _name(comparison: Comparison, side: str, method: str) -> str:
    """Return how a method of a side is called: the side's letter is enough where it has one method."""
    methods = next(found.methods for found in comparison.sides if found.name == side)
    return side if len(methods) == 1 else f"{side} {method_label(method)}"
