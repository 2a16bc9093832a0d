"""A server is reachable exactly when MLflow reaches it; one that is not is named in one line, without a password."""

import logging
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from promptdiffuser.errors import UserError
from promptdiffuser.tracking.addresses import check_answers
from promptdiffuser.tracking.delivery import Delivery
from promptdiffuser.tracking.store import connect, prepare
from tests.tracking.servers import MlflowServer, Proxy, basic, proxy

USER, PASSWORD, TOKEN = "anna", "s3cret/?#@x", "t0ken"


@pytest.fixture
def guarded(server: MlflowServer) -> Iterator[Proxy]:
    """Return a proxy in front of the server that asks for a name and a password, or a token."""
    with proxy(server.port, (basic(USER, PASSWORD), f"Bearer {TOKEN}")) as running:
        yield running


def refusal(uri: str, limit_s: float = 20.0) -> str:
    """Return why a store is refused; it is, in time, and in one line that says nothing secret."""
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        prepare(uri, "reached")
    assert time.monotonic() - started < limit_s
    message = str(error.value)
    assert "\n" not in message
    assert "s3cret" not in message
    assert TOKEN not in message
    return message


def test_credentials_are_those_of_mlflow(guarded: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"http://{guarded.address}"
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in refusal(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
    assert "MLFLOW_TRACKING_USERNAME" in refusal(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    prepare(uri, "reached")
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    prepare(uri, "reached")


@pytest.mark.parametrize(
    "password", ["s3cret", "s3cret%2Fx", "s3cret/x", "12/s3cret", "s3cret#x", "s3cret?x", "x@s3cret"]
)
def test_credentials_in_an_address_are_refused_with_the_variables_to_use(guarded: Proxy, password: str) -> None:
    message = refusal(f"http://{USER}:{password}@{guarded.address}")
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in message
    assert guarded.address in message


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://anna:s3cret@127.0.0.1/mlflow",
        "mysql+pymysql://127.0.0.1/mlflow?user=anna&password=s3cret",
        "anna:s3cret@127.0.0.1:5000",
        "http://127.0.0.1:9?password=s3cret",
        "http://127.0.0.1:9/?mail=x@y&password=s3cret",
        "https://anna:s3cret@127.0.0.1:port",
    ],
)
def test_no_message_holds_a_password(uri: str, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Whatever is wrong with an address: as an error, and as the warning of a delivery."""
    assert "MLFLOW_TRACKING_" in refusal(uri)
    (tmp_path / "1-entry.json").write_text("{}")
    with caplog.at_level(logging.WARNING), Delivery(uri, tmp_path):
        pass
    assert caplog.text
    assert "s3cret" not in caplog.text


def test_retries_of_a_request_are_not_printed_with_its_address() -> None:
    assert not logging.getLogger("urllib3.connectionpool").isEnabledFor(logging.WARNING)


def test_certificates_are_those_of_mlflow(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server with a certificate of its own is reached once MLflow is told to trust it."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run([*make, *files], check=True, capture_output=True)
    (tmp_path / "both.pem").write_text(key.read_text() + certificate.read_text())
    with proxy(server.port, certificate=tmp_path / "both.pem") as running:
        uri = f"https://{running.address}"
        assert "certificate verify failed" in refusal(uri)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        prepare(uri, "reached")
        monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        prepare(uri, "reached")


def test_proxies_are_those_of_requests(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A range of addresses is left out of a proxy's; urllib does not know ranges."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert "proxy" in refusal(server.uri)
    monkeypatch.setenv("no_proxy", "127.0.0.0/8")
    prepare(server.uri, "reached")


def test_what_is_no_mlflow_server_is_refused(server: MlflowServer) -> None:
    """A query becomes part of MLflow's own request, which then asks for something else."""
    for uri in (f"{server.uri}/elsewhere", f"{server.uri}/?x=1", f"{server.uri}?x=1"):
        assert "does not answer like an MLflow server" in refusal(uri)
    with proxy(server.port) as running:
        running.failing = "/api/"
        assert "HTTP 500" in refusal(f"http://{running.address}")


def test_a_server_that_never_answers_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In seconds, or in the time that the user gives it by MLflow's own variable."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("promptdiffuser.tracking.addresses._PROBE_TIMEOUT_S", 2)
        assert "does not answer" in refusal(uri, limit_s=10)
        for seconds in (1, 4):
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(seconds))
            started = time.monotonic()
            with pytest.raises(UserError, match="does not answer"):
                check_answers(uri)
            assert seconds <= time.monotonic() - started < seconds + 1.5
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "soon")
        assert "MLFLOW_HTTP_REQUEST_TIMEOUT" in refusal(uri)


def test_a_server_that_cannot_take_files_is_refused_before_work(tmp_path: Path) -> None:
    """The name of the experiment stays free for a server that can."""
    database = f"sqlite:///{tmp_path}/mlflow.db"
    without_files = ["--no-serve-artifacts", "--default-artifact-root", "/proc/artifacts"]
    refusing = MlflowServer(database, without_files, tmp_path / "refusing.log")
    refusing.start()
    try:
        for _ in range(2):
            message = refusal(refusing.uri)
            assert "/proc/artifacts" in message
            assert "mlflow server --artifacts-destination" in message
    finally:
        refusing.stop()
    taking = MlflowServer(database, ["--artifacts-destination", str(tmp_path / "files")], tmp_path / "taking.log")
    taking.start()
    try:
        run = prepare(taking.uri, "reached").run("run", "run", None, {})
        run.log_json("note.json", {"kept": True})
        assert Path(connect(taking.uri).download_artifacts(run.run_id, "note.json")).is_file()
        files = [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
        assert [path.name for path in files] == ["note.json"]
    finally:
        taking.stop()
