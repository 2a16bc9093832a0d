"""The graph of an experiment: what its keys depend on, and what looking at it costs."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from promptdiffuser.experiment import Experiment
from promptdiffuser.keys import deciding
from promptdiffuser.methods import METHODS
from promptdiffuser.pipeline.experiment_graph import ExperimentGraph, graph_of
from promptdiffuser.pipeline.graph import Graph
from promptdiffuser.pipeline.options import JobOptions
from promptdiffuser.recipes import RECIPES
from promptdiffuser.sweeps.space import apply

QUICKSTART = RECIPES["quickstart"]()
EVERYTHING = replace(
    QUICKSTART,
    methods=tuple(METHODS),
    collection=replace(QUICKSTART.collection, qualities=("expert", "medium", "random")),
    pretraining=replace(
        QUICKSTART.pretraining, optimisation=replace(QUICKSTART.pretraining.optimisation, snapshot_every=500)
    ),
    diffuser=replace(
        QUICKSTART.diffuser,
        denoising_steps=10,
        multi_task=replace(QUICKSTART.diffuser.multi_task, snapshot_every=500),
        few_shot=replace(QUICKSTART.diffuser.few_shot, snapshot_every=10, use="best"),
        held_out_episodes=1,
    ),
    cluster=replace(QUICKSTART.cluster, data="streaming"),
)
"""Every method, every kind of stage, snapshots of all trainings: an experiment in which no field is without effect."""
NOT_DECIDING = {"checkpoint_every", "keep_checkpoints"}


def graph(experiment: Experiment) -> ExperimentGraph:
    return graph_of(JobOptions(experiment))


def keys(experiment: Experiment) -> dict[str, str]:
    """Return the keys of all stages, and of the parts of adapt and evaluate, by name."""
    stages = list(graph(experiment).graph)
    of_parts = {f"{stage.name} {part.name}": part.key for stage in stages for part in stage.parts}
    return {stage.name: stage.key for stage in stages} | of_parts


def changed(before: Experiment, after: Experiment) -> set[str]:
    """Return the names of the stages and parts whose keys differ."""
    old, new = keys(before), keys(after)
    assert old.keys() == new.keys()
    return {name for name in old if old[name] != new[name]}


def leaves(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from leaves(value, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", value


def others(value: Any) -> list[Any]:
    """Return values of the same type to try; not all need be allowed for the field."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1, value * 2, value + 3]
    if isinstance(value, float):
        return [other for other in (value / 2, value * 2, 0.5, 1.5, 0.0) if other != value]
    words = ["sum", "conflict", "bf16", "fp32", "constant", "ddim", "ddpm", "best", "last", "any", "best-first", "top"]
    more = ["medium", "random", "redrawn", "fixed", "banded", "full", "cosine", "vp", "noise", "x0", "v", "all"]
    return [word for word in (*words, *more) if word != value] if isinstance(value, str) else []


def experiments_that_differ(experiment: Experiment) -> Iterator[tuple[str, Experiment]]:
    """Yield an experiment for each field of a number or word that another value is allowed for."""
    for path, value in leaves(experiment):
        if path.startswith("cluster.") or path == "family":
            continue
        for other in others(value):
            try:
                changed_experiment = apply({path: other}, experiment)
            except Exception:
                continue
            yield path, changed_experiment
            break


DIFFERENT = dict(experiments_that_differ(EVERYTHING))


def test_every_field_that_decides_a_result_is_in_a_key_and_no_other_is() -> None:
    before = keys(EVERYTHING)
    assert len(DIFFERENT) > 120
    unseen = {path for path, experiment in DIFFERENT.items() if keys(experiment) == before}
    assert {path.rsplit(".", 1)[-1] for path in unseen} == NOT_DECIDING


def test_settings_of_a_method_are_of_its_adaptations_and_episodes_only() -> None:
    lora = dataclasses.replace(EVERYTHING.adaptation.lora, rank=3)
    other = dataclasses.replace(EVERYTHING, adaptation=dataclasses.replace(EVERYTHING.adaptation, lora=lora))
    assert changed(EVERYTHING, other) == {"adapt", "adapt lora", "evaluate", "evaluate lora"}


@pytest.mark.parametrize("training", ["pretraining.optimisation", "diffuser.multi_task", "diffuser.few_shot"])
def test_how_often_a_checkpoint_is_written_is_in_no_key(training: str) -> None:
    assert changed(EVERYTHING, apply({f"{training}.checkpoint_every": 77}, EVERYTHING)) == set()


def test_a_change_is_seen_from_its_stage_on() -> None:
    found = changed(EVERYTHING, apply({"diffuser.multi_task.steps": 1777}, EVERYTHING))
    untouched = {"collect", "pretrain", "pretrain-mt-orl", "optimised-prompts", "denoising-context", "denoising-y"}
    assert not found & untouched
    assert {"diffuser-context", "adapt prompt-diffuser", "evaluate prompt-diffuser"} <= found
    assert not {"adapt prompt-dt", "adapt lora", "evaluate prompt-dt"} & found


def test_where_an_experiment_runs_is_in_no_key() -> None:
    cluster = replace(EVERYTHING.cluster, train_workers=3, rollout_actors=7, local_cpus=9)
    assert changed(EVERYTHING, replace(EVERYTHING, cluster=cluster)) == set()
    assert changed(QUICKSTART, replace(QUICKSTART, cluster=replace(QUICKSTART.cluster, data="streaming"))) != set()


def test_a_graph_orders_its_stages_and_has_each_once() -> None:
    last = graph(EVERYTHING).evaluate
    stages = list(Graph([last, last]))
    assert stages[-1] is last
    assert len({stage.key for stage in stages}) == len(stages)
    for place, stage in enumerate(stages):
        before = {earlier.key for earlier in stages[:place]}
        assert {node.key for node in stage.inputs.values()} <= before


def test_deciding_settings_of_nested_values() -> None:
    optimisation = QUICKSTART.pretraining.optimisation
    found = deciding({"a": [optimisation], "b": (1, 2)})
    assert found["a"][0]["steps"] == optimisation.steps
    assert "checkpoint_every" not in found["a"][0]
    assert found["b"] == [1, 2]


@pytest.mark.parametrize("command", ["plan", "status"])
def test_looking_at_a_graph_starts_nothing_and_writes_nothing(command: str, tmp_path: Path) -> None:
    program = f"""
import sys
from promptdiffuser.cli.main import main
main([{command!r}, "quickstart"])
print(sorted({{"ray", "mlflow", "pandas", "matplotlib", "metaworld"}} & set(sys.modules)))
"""
    environment = os.environ | {"COLUMNS": "300"}
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == "[]"
    for name in ("collect", "pretrain", "diffuser-published", "diffuser-context", "adapt", "evaluate"):
        assert f" {name} " in ended.stdout
    assert not list(tmp_path.iterdir())
