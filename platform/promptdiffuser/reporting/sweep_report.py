"""The report of a sweep: which configuration is best, which fields matter, and what a better result costs.

    python -m analysis.sweep_report RUN_ID
    python -m analysis.sweep_report outputs/quickstart/sweep-1a2b3c4d --rows guidance.weight

A sweep is the id of its MLflow run, or its folder. In a script: `load_sweep`, `heat_table`,
`promptdiffuser.reporting.importance.field_importance`, `promptdiffuser.statistics.pareto.on_front`.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import tyro
from mlflow.exceptions import MlflowException

from promptdiffuser.errors import UserError
from promptdiffuser.paths import local_path
from promptdiffuser.reporting import page
from promptdiffuser.reporting.evidence import interval_of
from promptdiffuser.reporting.figures import heat_map, importance_bars, parallel_coordinates, value_for_cost
from promptdiffuser.reporting.importance import field_importance
from promptdiffuser.reporting.tables import write_tables
from promptdiffuser.statistics.pareto import on_front
from promptdiffuser.tracking.store import connect, resolve_uri

RESULTS, CONFIRMED = "results.parquet", "confirmed.json"
_NO_FIELDS = ("trial", "state", "run")
_MOST_LEVELS = 10
"""A numeric field with more values than this is shown in bins."""
_BINS = 6


@dataclass(frozen=True)
class SweepTrials:
    """The trials of a sweep."""

    name: str
    trials: pd.DataFrame
    """One row a trial: its name `trial`, the swept fields by their dotted names, `state` (finished, stopped, diverged),
    `run` (id in MLflow), and measures such as validation/return and time/seconds; missing where a trial diverged."""
    confirmed: dict[str, Any] = field(default_factory=dict)
    """What the confirmed configuration got on the test tasks: trial, test/return and its interval; empty before."""
    experiment_id: str = ""
    """Of the sweep's MLflow run; empty if it was read from a folder."""

    @property
    def fields(self) -> list[str]:
        """The swept fields, in the order of the space."""
        return [name for name in self.trials.columns if "/" not in name and name not in _NO_FIELDS]

    def best(self, objective: str) -> pd.Series:
        """Return the trial with the highest objective among those trained to their end, the first of equals.

        Raises:
            UserError: None was.
        """
        finished = self.trials[(self.trials["state"] == "finished") & self.trials[objective].notna()]
        if finished.empty:
            raise UserError(f"no trial of {self.name} was trained to its end with a result; run more trials")
        return finished.loc[finished[objective].idxmax()]


def load_sweep(source: str, uri: str) -> SweepTrials:
    """Load the trials of a sweep.

    Args:
        source: Folder of a sweep, or the id of its MLflow run.
        uri: MLflow tracking URI.

    Raises:
        UserError: There is no such sweep, or it has no results yet.
    """
    if Path(source).is_dir():
        return _read(Path(source), Path(source).name, "")
    client = connect(uri)
    try:
        run = client.get_run(source)
    except MlflowException as error:
        raise UserError(f"{source} is no folder, and no run in {uri}; `make ui` shows the ids of runs") from error
    with tempfile.TemporaryDirectory() as downloads:
        for name in {artifact.path for artifact in client.list_artifacts(source)} & {RESULTS, CONFIRMED}:
            client.download_artifacts(source, name, downloads)
        return _read(Path(downloads), str(run.info.run_name), run.info.experiment_id)


def _read(folder: Path, name: str, experiment_id: str) -> SweepTrials:
    if not (folder / RESULTS).is_file():
        raise UserError(f"{name} has no {RESULTS}; name the folder or the MLflow run of a sweep that has ended")
    confirmed = json.loads((folder / CONFIRMED).read_text()) if (folder / CONFIRMED).is_file() else {}
    trials = pd.read_parquet(folder / RESULTS)
    bounds = [column for column in trials if str(column).endswith(("_low", "_high"))]  # objects where none is known
    confirmed = {key: nan if value is None else value for key, value in confirmed.items()}
    return _checked(SweepTrials(name, trials.astype(dict.fromkeys(bounds, "float64")), confirmed, experiment_id))


def _checked(sweep: SweepTrials) -> SweepTrials:
    lacking = [name for name in ("trial", "state") if name not in sweep.trials]
    if lacking or not sweep.fields:
        raise UserError(f"{RESULTS} of {sweep.name} has no column {lacking or 'of a swept field'}; run the sweep again")
    return sweep


def heat_table(sweep: SweepTrials, rows: str, columns: str, objective: str) -> pd.DataFrame:
    """Return the mean objective of the trials by two fields; a numeric field of many values is binned by quantiles."""
    keys = [_levels(sweep.trials[name]).rename(name) for name in (rows, columns)]
    return sweep.trials[objective].groupby(keys, observed=True).mean().unstack(columns)


def _levels(values: pd.Series) -> pd.Series:
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > _MOST_LEVELS:
        return pd.qcut(values, _BINS, duplicates="drop", precision=2)
    return values


@dataclass(frozen=True)
class Arguments:
    """Report of a sweep from MLflow (`MLFLOW_TRACKING_URI`, else ./mlflow.db) or from its folder."""

    sweep: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SWEEP")]
    """MLflow run id or folder of a sweep."""
    rows: str = ""
    """Field along the rows of the heat map; the most important two if none is named."""
    columns: str = ""
    """Field along its columns."""
    objective: str = "validation/return"
    """Measure to maximise."""
    cost: str = "time/seconds"
    """Measure of what a trial costs."""
    output: Path = Path("outputs/sweep-report")
    """Folder for the page, CSV and Parquet."""


def write_sweep_report(sweep: SweepTrials, uri: str, choice: Arguments) -> Path:
    """Write index.html with every table as CSV and Parquet beside it, and return the page's path.

    Raises:
        UserError: A named field or measure is not there, or no trial has a result.
    """
    output, tables = local_path(choice.output), sweep_tables(sweep, choice)
    text = render(sweep, tables, uri, choice)
    write_tables(tables, output)
    path = output / "index.html"
    path.write_text(text, encoding="utf-8")
    return path


def sweep_tables(sweep: SweepTrials, choice: Arguments) -> dict[str, pd.DataFrame | str]:
    """Return trials (best first, with the column `front`), importance (or why there is none), heat (of two fields)."""
    measures = [name for name in sweep.trials.columns if "/" in name]
    known = {"rows": sweep.fields, "columns": sweep.fields, "objective": measures, "cost": measures}
    for option, names in known.items():
        if (name := getattr(choice, option)) and name not in names:
            raise UserError(f"--{option} {name}: the sweep has {', '.join(names)}")
    sweep.best(choice.objective)
    front = on_front(sweep.trials, choice.cost, choice.objective)
    tables: dict[str, pd.DataFrame | str] = {
        "trials": sweep.trials.assign(front=front).sort_values(choice.objective, ascending=False, ignore_index=True)
    }
    order = list(sweep.fields)
    try:
        importance = field_importance(sweep.trials, sweep.fields, choice.objective)
        tables["importance"] = importance
        # The two that matter most, in the order of the space.
        order.sort(key=lambda name: name not in importance.index[:2])
    except UserError as error:
        tables["importance"] = f"Not computed: {error}."
    rows = choice.rows or next(name for name in order if name != choice.columns)
    columns = choice.columns or next((name for name in order if name != rows), "")
    if columns:
        tables["heat"] = heat_table(sweep, rows, columns, choice.objective)
    return tables


def render(sweep: SweepTrials, tables: dict[str, pd.DataFrame | str], uri: str, choice: Arguments) -> str:
    """Return the page as HTML text, with what `sweep_tables` computed."""
    trials, objective, cost = tables["trials"], choice.objective, choice.cost
    assert isinstance(trials, pd.DataFrame)
    heat, importance = tables.get("heat"), tables["importance"]
    measures = [name for name in trials.columns if "/" in name and "task-" not in name]
    shown = [*sweep.fields, *(name for name in measures if not name.endswith(("_low", "_high"))), "state"]
    linked = sweep.experiment_id and "run" in trials
    return page.render(
        "sweep.html",
        title=f"Sweep {sweep.name}: {len(trials)} trials",
        objective=objective,
        cost=cost,
        conclusions=conclusions(sweep, objective),
        heat=heat,
        heat_map=heat_map(heat, objective) if isinstance(heat, pd.DataFrame) else None,
        importance=importance,
        importance_bars=importance_bars(importance) if isinstance(importance, pd.DataFrame) else None,
        parallel=parallel_coordinates(trials, sweep.fields, objective),
        front=value_for_cost(
            trials.assign(name=trials["trial"], faint=trials["state"] != "finished"), cost, objective, (cost, objective)
        ),
        trials=trials.set_index("trial").rename_axis("Trial"),
        columns=[(name, name, "") for name in shown],
        run_links=[page.run_address(uri, sweep.experiment_id, run) for run in trials["run"]] if linked else [],
    )


def conclusions(sweep: SweepTrials, objective: str) -> list[str]:
    """Return sentences computed from the numbers: what they show, and where they stop."""
    trials, best = sweep.trials, sweep.best(objective)
    counts = trials["state"].value_counts()
    point = ", ".join(f"{name} {best[name]}" for name in sweep.fields)
    sentences = [
        f"{len(trials)} trials: " + ", ".join(f"{number} {state}" for state, number in counts.items()) + ".",
        f"{best['trial']} is best: {objective} {page.number(best[objective])}{_bounds(best, objective)} with {point}.",
    ]
    low, high = f"{objective}_low", f"{objective}_high"
    if low in trials:
        others = trials[(trials["state"] == "finished") & (trials["trial"] != best["trial"])]
        close = others[~(others[high] < best[low])]
        sentences.append(
            f"Which trial is best is not settled: the 95\u00a0% intervals of {len(close)} of the {len(others)} other "
            f"finished trials reach its own or are unknown{_highest(close[high])}."
            if len(close)
            else f"Its 95\u00a0% interval lies above those of all {len(others)} other finished trials."
        )
    sentences.append(
        f"It is the highest of {len(trials)} on validation tasks, so luck helped to choose it: expect less on test "
        "tasks."
    )
    if sweep.confirmed:
        sentences.append(
            f"{sweep.confirmed['trial']} was confirmed once on the test tasks, with fresh seeds: test/return "
            f"{page.number(sweep.confirmed['test/return'])}{_bounds(sweep.confirmed, 'test/return')}, normalised "
            f"{page.number(sweep.confirmed['test/normalised'], 3)}."
        )
    return sentences


def _highest(bounds: "pd.Series[float]") -> str:
    return f"; the highest reaches {page.number(bounds.max())}" if bounds.notna().any() else ""


def _bounds(trial: Mapping[str, Any] | pd.Series, objective: str) -> str:
    return f" {page.bounds(interval_of(trial, objective))}" if f"{objective}_low" in trial else ""


def run(job: Arguments) -> None:
    """Write the report and print its conclusions."""
    uri = resolve_uri()
    sweep = load_sweep(job.sweep, uri)
    path = write_sweep_report(sweep, uri, job)
    print("\n".join([*conclusions(sweep, job.objective), f"wrote {path}"]))
