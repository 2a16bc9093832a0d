"""One SQLite store and one server for all tests of this folder: making a store takes seconds."""

from collections.abc import Iterator

import pytest

from promptdiffuser.tracking.store import Tracker, prepare
from tests.tracking.servers import MlflowServer, mlflow_server


@pytest.fixture(scope="session")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """Return a tracker of an experiment in a real SQLite store."""
    return prepare(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db", "tests")


@pytest.fixture(scope="session")
def server() -> Iterator[MlflowServer]:
    """Return a running MLflow server on PostgreSQL and S3."""
    with mlflow_server() as running:
        yield running
