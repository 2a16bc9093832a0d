"""What a comparison compares: runs of whole experiments, or of single methods, out of MLflow.

Runs that differ in nothing but what makes them replicates of each other (`REPLICATE`: the seed, the draw of the
few-shot set, the start states and the dataset collected anew) are trainings of one configuration and make one side.
"""

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from promptdiffuser.errors import UserError
from promptdiffuser.methods.backbones import PROMPTED
from promptdiffuser.reporting.mlflow_reader import (
    PARENT_STAGE,
    TRAINING,
    ExperimentResults,
    experiment_of,
    load_experiment,
    scored_episodes,
)
from promptdiffuser.tracking.names import COMMIT_TAG, DIRTY_TAG, METHOD_TAG, PARENT_TAG, STAGE_TAG, VERSION_TAG
from promptdiffuser.tracking.store import connect, flatten

METHOD_STAGE = "method"
SEED = "seed"
DATASET = "dataset digest"
REPLICATE = (
    SEED,
    "evaluation.few_shot.draw",
    "evaluation.seed",
    "collection.seed",
    DATASET,
    "protocol: few_shot.draw",
    "protocol: seed",
)
"""Settings and conditions that may differ between the trainings of one configuration."""
NOT_RECORDED = "not recorded"
_OWN_TAGS = ("mlflow.", "promptdiffuser.")
_COMMIT_TAGS = {COMMIT_TAG: "commit", DIRTY_TAG: "uncommitted changes"}


@dataclass(frozen=True)
class Side:
    """One configuration with the episodes of all its trainings."""

    name: str
    """A, B, ... in the order in which runs were named."""
    title: str
    """Name of the run in MLflow, and what of it is compared."""
    runs: tuple[Run, ...]
    """One a training, in the order of `replicates`."""
    settings: dict[str, str]
    """Every setting of the experiment, and the versions it ran with."""
    conditions: dict[str, str]
    """What has to be equal for returns to be comparable: family, tasks, physics, protocol."""
    replicates: dict[str, dict[str, str]]
    """Training -> the conditions of its own, equal to those of the same training of another side: dataset digest, draw
    of the few-shot set, start states."""
    episodes: pd.DataFrame
    """One row an episode, with its normalised `score`, and the column training_seed."""
    costs: pd.DataFrame
    """Mean over trainings: one row a method, columns time/... and cost/..."""
    curves: pd.DataFrame
    """Metrics of training: stage, run, key, step, value, training_seed."""
    task_labels: dict[str, str]

    @property
    def methods(self) -> list[str]:
        """Methods evaluated, in the order of evaluation."""
        return [str(method) for method in self.episodes["method"].unique()]

    def of_method(self, method: str) -> pd.DataFrame:
        """Return the episodes of one method, renamed to this side."""
        return self.episodes[self.episodes["method"] == method].assign(method=self.name)


@dataclass(frozen=True)
class _Training:
    """One run with all that is read for it."""

    run: Run
    methods: tuple[str, ...]
    settings: dict[str, str]
    conditions: dict[str, str]
    results: ExperimentResults
    costs: pd.DataFrame
    trained: frozenset[str]
    """Names of the runs that trained what its methods adapt."""


def find_sides(uri: str, selections: Sequence[str]) -> list[Side]:
    """Return the sides that run ids and MLflow filter strings select.

    Args:
        uri: MLflow tracking URI.
        selections: Run ids of experiments or of methods, or filter strings as MLflow's search takes them. Of what a
            filter finds, the runs of methods are taken, where there are none, the runs of experiments.

    Raises:
        UserError: A run is missing, is neither of an experiment nor of a method, or has no evaluation.
    """
    client = connect(uri)
    runs = {run.info.run_id: run for selection in selections for run in _select(client, selection)}
    loaded: dict[str, ExperimentResults] = {}
    trainings = [_training(client, uri, run, loaded) for run in runs.values()]
    groups: dict[Any, list[_Training]] = {}
    for training in trainings:
        groups.setdefault(_configuration(training), []).append(training)
    kept = list(_distinct(groups.values()))
    if len(kept) > len(string.ascii_uppercase):
        raise UserError(f"{len(kept)} configurations are too many for one comparison; name fewer than 27")
    return [_side(name, group) for name, group in zip(string.ascii_uppercase, kept, strict=False)]


def _select(client: MlflowClient, selection: str) -> list[Run]:
    if selection.isalnum():
        try:
            return [client.get_run(selection)]
        except MlflowException as error:
            raise UserError(f"no run {selection!r} in the MLflow store; `make ui` shows the ids of runs") from error
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    try:
        found = client.search_runs(everywhere, selection, order_by=["start_time"])
    except MlflowException as error:
        raise UserError(
            f"{selection!r} is neither a run id nor a filter ({str(error).splitlines()[0]}); a filter looks like "
            "\"tags.`promptdiffuser.method` = 'prompt-diffuser'\""
        ) from error
    for stage in (METHOD_STAGE, PARENT_STAGE):
        if of_stage := [run for run in found if run.data.tags.get(STAGE_TAG) == stage]:
            return of_stage
    raise UserError(f"the filter {selection!r} finds no run of an experiment or of a method; loosen it")


def _training(client: MlflowClient, uri: str, run: Run, loaded: dict[str, ExperimentResults]) -> _Training:
    parent = experiment_of(client, run)
    if parent.info.run_id not in loaded:
        name = client.get_experiment(parent.info.experiment_id).name
        loaded[parent.info.run_id] = load_experiment(uri, name, parent.info.run_id)
    results = loaded[parent.info.run_id]
    evaluate = results.stages["evaluate"][-1]
    below = client.search_runs([run.info.experiment_id], f"tags.`{PARENT_TAG}` = '{evaluate.info.run_id}'")
    method_runs = {
        below_run.data.tags[METHOD_TAG]: below_run for below_run in below if METHOD_TAG in below_run.data.tags
    }
    settings = {**parent.data.params, **_versions(parent)}
    methods = tuple(map(str, results.episodes["method"].unique()))
    if missing := sorted(set(methods) - set(method_runs)):
        raise UserError(
            f"evaluate run {evaluate.info.run_id} has no run of method {missing[0]!r} below it; evaluate again with: "
            f"{results.summary['command']}"
        )
    if run.data.tags.get(STAGE_TAG) == METHOD_STAGE:
        methods = (run.data.tags[METHOD_TAG],)
        settings = {**settings, **run.data.params}
        settings.pop("methods", None)
        if run.info.run_id not in {method_run.info.run_id for method_run in method_runs.values()}:
            raise UserError(
                f"run {run.info.run_id} lies below an evaluation that a newer one of its experiment replaced"
            )
    own = {method: method_runs[method] for method in methods}
    trained = frozenset(name for method_run in own.values() for name in _trainings_behind(method_run).values())
    return _Training(run, methods, settings, _conditions(results), results, _costs(results, own), trained)


def _versions(run: Run) -> dict[str, str]:
    """Return what a run was made with: commit, versions, and tags that somebody gave it."""
    tags = run.data.tags
    given = {key: value for key, value in tags.items() if not key.startswith(_OWN_TAGS)}
    packages = {key.removeprefix(VERSION_TAG): value for key, value in tags.items() if key.startswith(VERSION_TAG)}
    return given | packages | {name: tags[key] for key, name in _COMMIT_TAGS.items() if key in tags}


def _conditions(results: ExperimentResults) -> dict[str, str]:
    summary = results.summary
    return {
        "family": summary["family"],
        "test tasks": ", ".join(map(str, summary["test_tasks"])),
        DATASET: summary["dataset_digest"],
        "physics": _versions(results.parent).get("mujoco", NOT_RECORDED),
        **{f"protocol: {key}": str(value) for key, value in flatten(summary["protocol"])},
    }


def _trainings_behind(method_run: Run) -> dict[str, str]:
    """Return cost -> name of the run that trained what a method adapts, as the method's parameters name it."""
    backbone, diffuser = (method_run.data.params[f"method.{part}"] for part in ("backbone", "diffuser"))
    runs = {"time/pretrain_s": "pretrain" if backbone == PROMPTED else f"pretrain-{backbone}"}
    return runs if diffuser == "None" else runs | {"time/diffuser_s": f"diffuser-{diffuser}"}


def _costs(results: ExperimentResults, method_runs: Mapping[str, Run]) -> pd.DataFrame:
    seconds = results.metrics[results.metrics["key"] == "time/stage_s"].groupby("run")["value"].last()
    rows = {
        method: {
            **{cost: seconds[name] for cost, name in _trainings_behind(run).items() if name in seconds},
            **{key: value for key, value in run.data.metrics.items() if key.startswith(("time/", "cost/"))},
        }
        for method, run in method_runs.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", dtype="float64").rename_axis("method")


def _configuration(training: _Training) -> tuple[Any, ...]:
    """Return what makes trainings one configuration: all that does not make them replicates."""
    return (training.methods, *(frozenset(_common(values)) for values in (training.settings, training.conditions)))


def _common(values: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(key, value) for key, value in values.items() if key not in REPLICATE]


def _replicate(training: _Training) -> dict[str, str]:
    """Return the key of a replicate."""
    values = training.settings | training.conditions
    return {key: values[key] for key in REPLICATE if key in values}


def _distinct(groups: Iterable[list[_Training]]) -> Iterator[list[_Training]]:
    """Take apart what only looks like several trainings: one that was run again is a side of its own."""
    for group in groups:
        if len({tuple(_replicate(training).items()) for training in group}) == len(group):
            yield group
        else:
            yield from ([training] for training in group)


def _labels(group: Sequence[_Training]) -> list[str]:
    """Return a name for each training: its seed, or where seeds are equal all that tells it apart."""
    keys = [_replicate(training) for training in group]
    seeds = [key.get(SEED, "") for key in keys]
    if len(set(seeds)) == len(group):
        return seeds
    differing = [name for name in keys[0] if len({key.get(name) for key in keys}) > 1 or name == SEED]
    return [", ".join(f"{name} {key.get(name, '-')}" for name in differing) for key in keys]


def _side(name: str, group: list[_Training]) -> Side:
    group = [training for _, training in sorted(zip(_labels(group), group, strict=True), key=lambda pair: pair[0])]
    first, labels = group[0], _labels(group)
    title = f"{first.results.name}: {first.results.parent.info.run_name}"
    if len(first.methods) == 1:
        title += f", {first.methods[0]}"
    if len(group) > 1:
        title += f", {len(group)} trainings"

    def every(key: str, values: Sequence[str]) -> str:
        """Return what all trainings have in common, else the value of each."""
        return values[0] if len(set(values)) == 1 else ", ".join(values)

    def joined(which: str) -> dict[str, str]:
        return {key: every(key, [getattr(training, which)[key] for training in group]) for key in getattr(first, which)}

    curves = pd.concat(
        [training.results.metrics.assign(training_seed=label) for training, label in zip(group, labels, strict=True)]
    )
    is_curve = curves["key"].str.startswith(TRAINING) & curves["run"].isin(first.trained)
    return Side(
        name=name,
        title=title,
        runs=tuple(training.run for training in group),
        settings=joined("settings"),
        conditions=dict(_common(joined("conditions"))),
        replicates={
            label: {key: value for key, value in training.conditions.items() if key in REPLICATE}
            for label, training in zip(labels, group, strict=True)
        },
        episodes=pd.concat(
            [_episodes(training, label) for training, label in zip(group, labels, strict=True)], ignore_index=True
        ),
        costs=pd.concat([training.costs for training in group]).groupby("method", sort=False).mean(),
        curves=curves[is_curve].reset_index(drop=True),
        task_labels=first.results.summary["tasks"],
    )


def _episodes(training: _Training, label: str) -> pd.DataFrame:
    episodes = scored_episodes(training.results)
    own = episodes[episodes["method"].isin(training.methods)]
    if not training.results.summary["has_success"]:
        own = own.drop(columns="success", errors="ignore")  # where a family says nothing of it, 0 would be a lie
    return own if "training_seed" in own else own.assign(training_seed=label)
