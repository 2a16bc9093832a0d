"""One MLflow store for all tests of this folder: making a SQLite store takes seconds."""

import pytest

from promptdiffuser.tracking.store import Tracker, prepare


@pytest.fixture(scope="session")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """Return a tracker of an experiment in a real SQLite store."""
    return prepare(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db", "tests")
