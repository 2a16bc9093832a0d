"""Write the report of an experiment: one self-contained HTML page, made from MLflow alone.

python analysis/report.py --experiment quickstart --output report.html
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from typing import Any

import pandas as pd

from promptdiffuser.errors import UserError
from promptdiffuser.evaluation.scores import nothing_learned
from promptdiffuser.paths import local_path
from promptdiffuser.reporting import page
from promptdiffuser.reporting.diagnostics import inside_table, shown_inside
from promptdiffuser.reporting.evidence import (
    BASELINE,
    best_scores,
    differences,
    evidence,
    floor_rows,
    interval_of,
    returns_forest,
    shown_differences,
    shown_variance,
)
from promptdiffuser.reporting.figures import (
    learning_curves,
    method_label,
    method_order,
    performance_profiles,
    prompt_plane,
    task_label,
)
from promptdiffuser.reporting.mlflow_reader import PARENT_STAGE, ExperimentResults, load_experiment, scored_episodes
from promptdiffuser.reporting.tables import write_tables
from promptdiffuser.reporting.verdicts import verdict
from promptdiffuser.statistics.scores import at_first_target
from promptdiffuser.tasks import get_family
from promptdiffuser.tracking.store import flatten, resolve_uri

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
    write_tables(tables, path.with_suffix(""))
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
    summary, episodes = results.summary, scored_episodes(results)
    scores, differing, variance = (tables[name] for name in ("scores", "differences", "variance"))
    known_scores = None if isinstance(scores, str) else scores
    methods, tasks = _methods(summary), tables["tasks"]
    assert isinstance(tasks, pd.DataFrame)
    titles = {int(task): task_label(task, summary["tasks"]) for task in summary["test_tasks"]}
    floors = floor_rows(summary["references"], get_family(summary["family"]), titles)
    return page.render(
        "report.html",
        title=f"{results.name}: {summary['family']}, {len(summary['test_tasks'])} test tasks",
        conclusions=conclusions(results),
        verdicts=verdicts(episodes),
        methods=methods,
        floors=floors,
        tasks=tasks.rename(columns={f"task {task}": title for task, title in titles.items()}).loc[methods.index],
        forest=returns_forest(methods, known_scores, episodes, titles, floors),
        baseline=method_label(BASELINE),
        scores=scores,
        profiles=None
        if known_scores is None
        else performance_profiles(best_scores(episodes, known_scores), floors["normalised"]),
        differences=differing if isinstance(differing, str) else shown_differences(differing),
        variance=variance if isinstance(variance, str) else shown_variance(variance),
        plane=prompt_plane(results.prompts, summary["tasks"]),
        inside=shown_inside(tables["inside"]) if "inside" in tables else {},
        curves=learning_curves(results.metrics),
        **_provenance(results),
    )


def conclusions(results: ExperimentResults) -> list[str]:
    """Return sentences computed from the numbers: what they show, and where they stop."""
    methods: dict[str, Any] = results.summary["methods"]
    returns = _methods(results.summary)
    best = returns["return"].reindex(list(methods)).fillna(-inf).idxmax()
    num_tasks = len(results.summary["test_tasks"])
    caution = results.summary["caution"]
    sentences = ([caution] if caution else []) + [
        f"{method_label(best)} has the highest mean return: {page.number(methods[best]['mean'])} "
        f"{page.bounds(interval_of(returns.loc[best], 'return'))} over {num_tasks} test tasks; adapting takes it "
        f"{page.number(methods[best].get('seconds_adapt'))} s and "
        f"{page.number(methods[best].get('tunable_parameters'), 0)} tunable parameters."
    ]
    labelled = {method_label(method): result for method, result in methods.items()}
    sentences += nothing_learned(labelled, results.summary["references"])
    episodes = scored_episodes(results)
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


def verdicts(episodes: pd.DataFrame) -> list[str]:
    """Return one sentence per method: what its difference from the baseline allows to say."""
    try:
        return [
            f"On the same episodes, {verdict(paired, method_label(method), method_label(BASELINE))}."
            for method, paired in differences(episodes).items()
        ]
    except UserError as error:
        return [f"Methods are not compared on the same episodes: {error}."]


def _methods(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Return the results of the methods in the order in which they are shown."""
    methods = pd.DataFrame.from_dict(summary["methods"], orient="index")
    named = {"mean": "return", "ci_low": "return_low", "ci_high": "return_high"}
    dropped = "failed_share" if summary["has_success"] else "success"
    numbers = methods.drop(columns=["per_task", dropped]).rename(columns=named)
    return numbers.astype(dict.fromkeys(named.values(), "float64")).loc[method_order(list(methods.index))]


def _provenance(results: ExperimentResults) -> dict[str, Any]:
    summary, parent = results.summary, results.parent
    tags = {key: value for key, value in parent.data.tags.items() if not key.startswith("mlflow.")}
    runs = [(stage, run) for stage, runs in {PARENT_STAGE: [parent], **results.stages}.items() for run in runs]
    return {
        "provenance": {
            "command": summary["command"],
            "seed": summary["seed"],
            "dataset digest": summary["dataset_digest"],
            "test tasks": ", ".join(map(str, summary["test_tasks"])),
            **{f"protocol: {key}": value for key, value in flatten(summary["protocol"])},
            "MLflow run": parent.info.run_id,
            "MLflow's pages": page.server(results.uri),
            "started": page.when(parent.info.start_time),
        },
        "settings": {**dict(sorted(parent.data.params.items())), **dict(sorted(tags.items()))},
        "stages": pd.DataFrame(
            {
                "Stage": [stage for stage, _ in runs],
                "Status": [run.info.status for _, run in runs],
                "Started": [page.when(run.info.start_time) for _, run in runs],
                "Seconds": [((run.info.end_time or nan) - run.info.start_time) / 1000 for _, run in runs],
            },
            index=pd.Index([run.info.run_name for _, run in runs], name="Run"),
        ),
        "run_links": [page.run_address(results.uri, run.info.experiment_id, run.info.run_id) for _, run in runs],
    }


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
