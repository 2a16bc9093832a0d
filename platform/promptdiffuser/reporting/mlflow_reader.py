"""One experiment out of MLflow: its runs, its metric histories and the results of its evaluate stage."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from promptdiffuser.errors import UserError
from promptdiffuser.evaluation.summary import EvaluationSummary, read_summary
from promptdiffuser.statistics.scores import at_first_target, normalised, without_diverged
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.references import reference_returns
from promptdiffuser.tracking.names import PARENT_TAG, STAGE_TAG, USED_RUN_TAG
from promptdiffuser.tracking.store import connect
from promptdiffuser.tracking.writing import as_logged

STAGES = ("collect", "pretrain", "train-diffuser", "few-shot", "adapt", "evaluate")
PARENT_STAGE = "experiment"
EXPERT = "expert"
INSIDE = "prompts_inside.json"
TRAINING = "train/"
"""What the keys of training metrics start with."""


@dataclass(frozen=True)
class ExperimentResults:
    """Everything the figures and the report need."""

    uri: str
    """MLflow tracking URI of the store it lies in."""
    name: str
    """Name of the MLflow experiment."""
    parent: Run
    """The run that the stages lie below."""
    stages: dict[str, list[Run]]
    """Runs of each stage, oldest first; every stage of `STAGES` is a key."""
    metrics: pd.DataFrame
    """One row a logged point: stage, run, key, step, value."""
    episodes: pd.DataFrame
    """One row an evaluated episode: method, task, prompt, episode, seed, return, length, seconds."""
    prompts: pd.DataFrame
    """One row a prompt: method ("expert" for the few-shot set), task, prompt, features (flattened, normalised)."""
    summary: EvaluationSummary
    """What evaluate concluded, by method, and how: goals, protocol, dataset digest, command, seed."""
    inside: dict[str, dict[str, Any]]
    """Name of a training's run -> method -> measure -> number or list: what its diffuser's prompts are like."""


def load_experiment(uri: str, experiment_name: str, parent_run_id: str | None = None) -> ExperimentResults:
    """Load an experiment.

    Args:
        uri: MLflow tracking URI.
        experiment_name: Name of the MLflow experiment.
        parent_run_id: The experiment run to read; the newest one if not given.

    Raises:
        UserError: Something is missing; the message names it and the command that makes it.
    """
    client = connect(uri)
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None:
        known = ", ".join(sorted(found.name for found in client.search_experiments())) or "none"
        raise UserError(
            f"no experiment {experiment_name!r} in {uri} (it has: {known}); make it with: {_command(experiment_name)}"
        )
    parent = _parent_run(client, experiment.experiment_id, experiment_name, parent_run_id)
    children = _stage_runs(client, experiment.experiment_id, parent)
    stages = {stage: [run for run in children if run.data.tags.get(STAGE_TAG) == stage] for stage in STAGES}
    if not stages["evaluate"]:
        raise UserError(
            f"experiment {experiment_name!r} has no evaluate run below {parent.info.run_id}; "
            f"make it with: {_command(experiment_name)}"
        )
    evaluate = stages["evaluate"][-1]
    with tempfile.TemporaryDirectory() as folder:
        files = {
            name: _download(client, evaluate, name, Path(folder), experiment_name)
            for name in ("episodes.parquet", "prompts.parquet", "summary.json")
        }
        prompts = pd.read_parquet(files["prompts.parquet"])
        if (prompts["method"] == EXPERT).sum() < 2:
            raise UserError(
                f"prompts.parquet of evaluate run {evaluate.info.run_id} has fewer than two expert prompts; "
                f"make them with: {_command(experiment_name)}"
            )
        try:
            summary = read_summary(files["summary.json"].read_text())
        except UserError as error:
            again = f"{_command(experiment_name)} --rerun evaluate"
            raise UserError(f"evaluate run {evaluate.info.run_id}: {error}, here with {again}") from error
        episodes = pd.read_parquet(files["episodes.parquet"])
        return ExperimentResults(
            uri=uri,
            name=experiment_name,
            parent=parent,
            stages=stages,
            metrics=_metric_histories(client, stages),
            episodes=episodes,
            prompts=prompts,
            summary=summary,
            inside=_inside(client, stages),
        )


def scored_episodes(results: ExperimentResults) -> pd.DataFrame:
    """Return the episodes that methods are compared by, with their normalised scores."""
    references = reference_returns(get_family(results.summary["family"]))
    return normalised(without_diverged(at_first_target(results.episodes)), references)


def experiment_of(client: MlflowClient, run: Run) -> Run:
    """Return the run of the whole experiment that a run is or lies below.

    Raises:
        UserError: It belongs to no experiment, such as a sweep's trial.
    """
    above = run
    while above.data.tags.get(STAGE_TAG) != PARENT_STAGE:
        if PARENT_TAG not in above.data.tags:
            kind = run.data.tags.get(STAGE_TAG, "no stage")
            raise UserError(
                f"run {run.info.run_id} ({run.info.run_name}, {kind}) is not part of an experiment; name runs of "
                "experiments or of their methods, and read sweeps with python -m analysis.sweep_report"
            )
        above = client.get_run(above.data.tags[PARENT_TAG])
    return above


def _stage_runs(client: MlflowClient, experiment_id: str, parent: Run) -> list[Run]:
    """Return the runs below the parent and those of stages that it took over finished from another experiment run."""
    below = client.search_runs([experiment_id], f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'")
    taken_over = {value for key, value in parent.data.tags.items() if key.startswith(USED_RUN_TAG)}
    found = [*below, *(client.get_run(run_id) for run_id in taken_over - {run.info.run_id for run in below})]
    return sorted(found, key=lambda run: run.info.start_time)


def _command(experiment_name: str) -> str:
    return f"python jobs/pipeline.py {experiment_name}"


def _parent_run(client: MlflowClient, experiment_id: str, experiment_name: str, run_id: str | None) -> Run:
    if run_id is not None:
        try:
            return client.get_run(run_id)
        except MlflowException as error:
            raise UserError(
                f"no run {run_id!r} in experiment {experiment_name!r}; leave it out for the newest"
            ) from error
    found = client.search_runs(
        [experiment_id], f"tags.`{STAGE_TAG}` = '{PARENT_STAGE}'", max_results=1, order_by=["start_time DESC"]
    )
    if not found:
        raise UserError(f"experiment {experiment_name!r} has no run yet; make it with: {_command(experiment_name)}")
    return found[0]


def _download(client: MlflowClient, run: Run, name: str, folder: Path, experiment_name: str) -> Path:
    try:
        return Path(client.download_artifacts(run.info.run_id, name, str(folder)))
    except (MlflowException, OSError) as error:
        raise UserError(
            f"evaluate run {run.info.run_id} of experiment {experiment_name!r} has no artifact {name} "
            f"(status {run.info.status}); make it with: {_command(experiment_name)}"
        ) from error


def _inside(client: MlflowClient, stages: dict[str, list[Run]]) -> dict[str, dict[str, Any]]:
    found = {}
    for run in (run for runs in stages.values() for run in runs):
        if INSIDE in {artifact.path for artifact in client.list_artifacts(run.info.run_id)}:
            with tempfile.TemporaryDirectory() as folder:
                path = client.download_artifacts(run.info.run_id, INSIDE, folder)
                found[str(run.info.run_name)] = json.loads(Path(path).read_text())
    return found


def _metric_histories(client: MlflowClient, stages: dict[str, list[Run]]) -> pd.DataFrame:
    columns: Sequence[str] = ("stage", "run", "key", "step", "value")
    rows = [
        (stage, run.info.run_name, key, point.step, as_logged(point.value))
        for stage, runs in stages.items()
        for run in runs
        for key in sorted(run.data.metrics)
        for point in client.get_metric_history(run.info.run_id, key)
    ]
    frame = pd.DataFrame(rows, columns=list(columns)).astype({"value": "float64"})
    return frame.sort_values(["stage", "run", "key", "step"], ignore_index=True)
