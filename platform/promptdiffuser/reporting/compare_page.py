"""The page of a comparison."""

import json
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from promptdiffuser.evaluation.scores import reference_scores
from promptdiffuser.reporting import page
from promptdiffuser.reporting.compare import Comparison
from promptdiffuser.reporting.evidence import floor_rows, returns_forest, shown_differences
from promptdiffuser.reporting.figures import learning_curves, method_label, task_label
from promptdiffuser.reporting.tables import write_tables
from promptdiffuser.tasks import get_family


def write_comparison(comparison: Comparison, uri: str, folder: Path) -> Path:
    """Write index.html with every table as CSV and Parquet beside it, and return the page's path."""
    write_tables(comparison.tables(), folder)
    path = folder / "index.html"
    path.write_text(render(comparison, uri), encoding="utf-8")
    return path


def render(comparison: Comparison, uri: str) -> str:
    """Return the page as HTML text."""
    sides, family = comparison.sides, get_family(comparison.sides[0].conditions["family"])
    names = {
        (side.name, method): side.name if len(side.methods) == 1 else f"{side.name} {method_label(method)}"
        for side in sides
        for method in side.methods
    }
    named = pd.Index([names[row.side, row.method] for row in comparison.returns.itertuples()], name="Run")
    returns = comparison.returns.set_index(named)
    titles = {task: task_label(task, sides[0].task_labels) for task in map(int, comparison.tasks.index)}
    episodes = pd.concat(
        side.of_method(method).assign(method=names[side.name, method]) for side in sides for method in side.methods
    )
    floors = floor_rows(reference_scores(family), family, titles)
    differences = comparison.differences
    pairs = [
        f"{names[row.side, row.method]} − {names[row.reference, row.reference_method]}"
        for row in differences.itertuples()
    ]
    runs = [(side, run) for side in sides for run in side.runs]
    return page.render(
        "comparison.html",
        title=" and ".join(side.name for side in sides) + " compared",
        reference=sides[0].name,
        warnings=comparison.warnings,
        verdicts=comparison.verdicts,
        runs=pd.DataFrame(
            {"Side": [side.name for side, _ in runs], "What it is": [side.title for side, _ in runs]},
            index=pd.Index([run.info.run_id for _, run in runs], name="Run in MLflow"),
        ),
        run_links=[page.run_address(uri, run.info.experiment_id, run.info.run_id) for _, run in runs],
        in_mlflow=_in_mlflow(comparison, uri),
        settings=comparison.settings.rename_axis("Setting"),
        returns=returns,
        floors=floors,
        differences=shown_differences(differences.set_axis(pd.Index(pairs, name="Pair"))),
        forest=returns_forest(returns, None, episodes, titles, floors),
        tasks=comparison.tasks.set_axis(pd.Index(titles.values(), name="Task")).set_axis(
            [names[column] for column in comparison.tasks.columns], axis=1
        ),
        costs=comparison.costs.set_axis([names[key] for key in comparison.costs.index]).rename_axis("Run"),
        curves=learning_curves(comparison.curves.assign(run=_lines(comparison.curves))),
    )


def _in_mlflow(comparison: Comparison, uri: str) -> str:
    """Return the address of MLflow's own view of the same runs."""
    runs = [run for side in comparison.sides for run in side.runs]
    experiments = sorted({run.info.experiment_id for run in runs})
    return (
        f"{page.server(uri)}/#/compare-runs?runs={quote(json.dumps([run.info.run_id for run in runs]))}"
        f"&experiments={quote(json.dumps(experiments))}"
    )


def _lines(curves: pd.DataFrame) -> "pd.Series[str]":
    """Return the line of each point: the side and, where it has several, the training and the run."""
    name = curves["side"]
    for part in ("training_seed", "run"):
        several = curves.groupby(["side", "stage"])[part].transform("nunique") > 1
        name = name.where(~several, name + " " + curves[part].astype(str))
    return name
