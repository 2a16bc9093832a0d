"""Write the report of an experiment: one self-contained HTML page, made from MLflow alone.

python analysis/report.py --experiment quickstart --output report.html
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import Run

from promptdiffuser.errors import UserError
from promptdiffuser.evaluation.scores import nothing_learned, reference_task_returns
from promptdiffuser.paths import local_path
from promptdiffuser.reporting import page
from promptdiffuser.reporting.diagnostics import inside_sections, inside_table
from promptdiffuser.reporting.evidence import (
    BASELINE,
    differences,
    differences_section,
    evidence,
    scores_section,
    variance_section,
)
from promptdiffuser.reporting.figures import (
    learning_curves,
    method_colours,
    method_label,
    method_order,
    prompt_plane,
    returns_per_task,
)
from promptdiffuser.reporting.mlflow_reader import PARENT_STAGE, ExperimentResults, load_experiment, scored_episodes
from promptdiffuser.reporting.tables import write_tables
from promptdiffuser.reporting.verdicts import verdict
from promptdiffuser.statistics.intervals import Interval
from promptdiffuser.statistics.scores import at_first_target
from promptdiffuser.tasks import get_family
from promptdiffuser.tracking.store import flatten, resolve_uri

QUESTION = (
    "On tasks never seen in training, which way of making a prompt adapts the frozen policy best, at what cost, "
    "and how sure are we?"
)
FEW_TASKS = 6
"""Below this number even a method that wins on every task does not pass a sign test at 5 %."""


def write_report(uri: str, experiment_name: str, path: Path, parent_run_id: str | None = None) -> Path:
    """Write the report of an experiment (its newest run, if none is given) and return its path.

    What the report shows is also written as CSV and Parquet, into a folder beside it of the same name.
    """
    results = load_experiment(uri, experiment_name, parent_run_id)
    tables = report_tables(results)
    text = render(results, tables)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    write_tables({name: table for name, table in tables.items() if not isinstance(table, str)}, path.with_suffix(""))
    return path


def report_tables(results: ExperimentResults) -> dict[str, pd.DataFrame | str]:
    """Return what the report shows by name, each a frame or the reason why there is none.

    methods: what evaluate concluded; tasks: mean return by method and task; scores, differences, variance: see
    `reporting.evidence`; curves: metrics of training; inside: measures of the prompts that diffusers make.
    """
    methods = pd.DataFrame.from_dict(results.summary["methods"], orient="index").rename_axis("method")
    per_task = methods["per_task"].apply(pd.Series)
    scalars = [name for name in methods if not methods[name].map(lambda value: isinstance(value, dict)).any()]
    return {
        "methods": methods[scalars],
        "tasks": per_task.rename(columns="task {}".format),
        **evidence(scored_episodes(results)),
        "curves": results.metrics,
        **({"inside": inside_table(results.inside)} if results.inside else {}),
    }


def render(results: ExperimentResults, tables: Mapping[str, pd.DataFrame | str]) -> str:
    """Return the page as HTML text, with what `report_tables` computed."""
    summary = results.summary
    labels = summary["tasks"]
    episodes = scored_episodes(results)
    references = reference_task_returns(get_family(summary["family"]))
    sections = [
        page.section("conclusions", "What the numbers allow", page.listing(conclusions(results))),
        page.section("methods", "Methods compared", _method_table(summary)),
        scores_section(tables["scores"], episodes, summary["references"]),
        differences_section(tables["differences"]),
        page.section("tasks", "Mean return by task", _task_table(summary, references)),
        page.section(
            "returns",
            "Returns and their intervals",
            page.image(
                returns_per_task(episodes, labels, references),
                "Points and bars: mean return of each method on each test task and its 95 % interval",
            ),
            "Bars are 95\u00a0% intervals of Student over the different prompts of a task (its initial states where it "
            "has one prompt); a point without a bar has fewer than three. Horizontal lines are policies that ignore "
            "their observations: a method below them has not been shown to learn anything.",
        ),
        variance_section(tables["variance"]),
        page.section(
            "prompts",
            "Prompts of the methods against the expert's",
            page.image(
                prompt_plane(results.prompts, labels),
                "Points: each method's prompts over the expert's, in the plane of two principal components, by task",
            ),
            "Principal components of the expert prompts alone: segments of expert data of the same tasks, normalised "
            "as the policy sees them. A method whose points leave the expert's writes prompts that no expert made.",
        ),
        *inside_sections(results.inside),
        page.section(
            "training", "Training", page.image(learning_curves(results.metrics), "Curves: metrics of training by step")
        ),
        page.section("provenance", "Provenance", _provenance(results)),
    ]
    title = f"{results.name}: {summary['family']}, {len(summary['test_tasks'])} test tasks"
    return page.whole(title, QUESTION, sections)


def conclusions(results: ExperimentResults) -> list[str]:
    """Return sentences computed from the numbers: what they show, and where they stop."""
    methods: dict[str, Any] = results.summary["methods"]
    ranked = sorted(methods, key=lambda name: page.rank(methods[name]["mean"]), reverse=True)
    best = ranked[0]
    num_tasks = len(results.summary["test_tasks"])
    caution = results.summary["caution"]
    sentences = ([caution] if caution else []) + [
        f"{method_label(best)} has the highest mean return: {page.number(methods[best]['mean'])} "
        f"{page.bounds(_interval(methods[best]))} over {num_tasks} test tasks; adapting takes it "
        f"{page.number(methods[best].get('seconds_adapt'))} s and "
        f"{page.count(methods[best].get('tunable_parameters'))} tunable parameters."
    ]
    labelled = {method_label(method): result for method, result in methods.items()}
    sentences += nothing_learned(labelled, results.summary["references"])
    episodes = scored_episodes(results)
    try:
        sentences += [
            f"On the same episodes, {verdict(paired, method_label(method), method_label(BASELINE))}."
            for method, paired in differences(episodes).items()
        ]
    except UserError as error:
        sentences.append(f"Methods are not compared on the same episodes: {error}.")
    compared = len(at_first_target(results.episodes))
    if left_out := compared - len(episodes):
        sentences.append(
            f"{left_out} of {compared} episodes have no return because their simulator diverged; figures "
            "and comparisons leave them out."
        )
    if num_tasks < FEW_TASKS:
        sentences.append(
            f"With {num_tasks} tasks, conclusions about other tasks are only indicative: two equal methods would come "
            f"out in the same order on all of them {2 / 2**num_tasks:.0%} of the time."
        )
    sentences.append(
        f"All of this comes from one training of every model (seed {results.summary['seed']}): the intervals cover the "
        "prompts and the episodes run with them, not the variation between trainings. To say that one method is better "
        "than another takes at least three trainings: python -m analysis.compare of several seeds, or a benchmark."
    )
    return sentences


def _interval(row: Mapping[str, Any]) -> Interval:
    """Return a method's mean return as its summary has it; bounds that are not known are null there."""
    return Interval(*(nan if row[name] is None else row[name] for name in ("mean", "ci_low", "ci_high")))


def _method_table(summary: Mapping[str, Any]) -> str:
    methods: dict[str, Any] = summary["methods"]
    order = method_order(list(methods))
    colours = method_colours(order)
    best = max(order, key=lambda name: page.rank(methods[name]["mean"]))
    intervals = [_interval(methods[name]) for name in order]
    pictures = page.whiskers(intervals, [colours[name] for name in order])
    rows = []
    for name, interval, picture in zip(order, intervals, pictures, strict=True):
        row = methods[name]
        cells = (
            page.estimate(interval),
            picture,
            page.number(row["normalised"]),
            page.percent(row["success"] if summary["has_success"] else row["failed_share"]),
            page.number(row["seconds_adapt"]),
            page.count(row["tunable_parameters"]),
        )
        rows.append(page.method_row(name, colours[name], cells, best=name == best))
    references = summary["references"]
    rows += page.floor_rows(
        lambda policy: (
            page.number(references[policy]["mean"]),
            "",
            page.number(references[policy]["normalised"]),
            *[""] * 3,
        )
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
    return page.table("Methods", heads, rows)


def _task_table(summary: Mapping[str, Any], references: Mapping[str, Mapping[int, float]]) -> str:
    methods: dict[str, Any] = summary["methods"]
    order = method_order(list(methods))
    colours = method_colours(order)
    tasks = [str(task) for task in summary["test_tasks"]]
    best = {task: max(order, key=lambda name: page.rank(methods[name]["per_task"].get(task))) for task in tasks}
    rows = []
    for name in order:
        cells = [
            f"<strong>{number}</strong>" if best[task] == name else number
            for task in tasks
            for number in [page.number(methods[name]["per_task"].get(task))]
        ]
        rows.append(page.method_row(name, colours[name], cells))
    rows += page.floor_rows(lambda policy: [page.number(references[policy][int(task)]) for task in tasks])
    labels = summary["tasks"]
    heads = [f"Task {task}, {labels[task]}" if task in labels else f"Task {task}" for task in tasks]
    return page.table("Mean return by task", ("Method", *heads), rows)


def _provenance(results: ExperimentResults) -> str:
    summary, parent = results.summary, results.parent
    facts = {
        "command": summary["command"],
        "seed": summary["seed"],
        "dataset digest": summary["dataset_digest"],
        "test tasks": ", ".join(map(str, summary["test_tasks"])),
        **{f"protocol: {key}": value for key, value in flatten(summary["protocol"])},
        "MLflow run": parent.info.run_id,
        "MLflow's pages": page.server(results.uri),
        "started": page.when(parent.info.start_time),
    }
    tags = {key: value for key, value in parent.data.tags.items() if not key.startswith("mlflow.")}
    stages = {PARENT_STAGE: [parent], **results.stages}
    runs = [_run_row(results.uri, stage, run) for stage, stage_runs in stages.items() for run in stage_runs]
    return (
        page.facts(facts)
        + "<details open><summary>Stages</summary>"
        + page.table("Stages", ("Stage", "Run", "Status", "Started", "Seconds"), runs)
        + "</details><details><summary>All parameters and versions</summary>"
        + page.facts({**dict(sorted(parent.data.params.items())), **dict(sorted(tags.items()))})
        + "</details>"
    )


def _run_row(uri: str, stage: str, run: Run) -> str:
    info = run.info
    seconds = None if info.end_time is None else (info.end_time - info.start_time) / 1000
    cells = (page.text(info.status), page.when(info.start_time), page.number(seconds, 0))
    return page.row(page.text(stage), (page.run_link(uri, run, info.run_name), *cells))


@dataclass(frozen=True)
class Arguments:
    """Write the report of an experiment from MLflow (`MLFLOW_TRACKING_URI`, else ./mlflow.db)."""

    experiment: str
    """Name of the MLflow experiment, such as quickstart."""
    output: Path = Path("report.html")
    """File to write."""
    parent_run_id: str | None = None
    """Run of the whole experiment; the newest one if not given."""


def run(job: Arguments) -> None:
    """Write the report."""
    print(f"wrote {write_report(resolve_uri(), job.experiment, local_path(job.output), job.parent_run_id)}")
