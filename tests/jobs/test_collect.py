"""What decides which episodes are collected."""

import dataclasses
from pathlib import Path

import pytest

from promptdiffuser.experiment import Experiment


def test_experiments_of_different_seeds_share_a_dataset(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(pytestconfig.rootpath / "jobs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    import collect
    from workspace import JobOptions, Workspace

    def folder_of(experiment: Experiment) -> Path:
        workspace = Workspace(JobOptions(experiment, tmp_path))
        return workspace.folder_of(collect.stage(workspace))

    first = Experiment(name="some")
    assert folder_of(dataclasses.replace(first, seed=1)) == folder_of(first)
    other = dataclasses.replace(first, collection=dataclasses.replace(first.collection, seed=1))
    assert folder_of(other) != folder_of(first)
