"""Connecting to Ray: what is refused in one line, and starts that fail at first. Each in a process of its own."""

import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import tiny

ROOT = tiny.ROOT
LIMIT_S = 30
PASSWORD = "hunter2"
# Prints for each address how connecting to it ended and how long it took.
ASK = """
import json, os, sys, time
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.errors import UserError
from promptdiffuser.experiment import ClusterConfig
for address in sys.argv[1:]:
    os.environ["RAY_ADDRESS"], begun = address, time.monotonic()
    try:
        connect(ClusterConfig())
        answer = "connected"
    except UserError as error:
        answer = str(error)
    print(json.dumps([address, answer, time.monotonic() - begun]), flush=True)
"""
# Fails the first starts for real: Ray gives its own head no time to say its port.
START = """
import os, sys
import psutil, ray
from promptdiffuser.distributed import cluster
from promptdiffuser.experiment import ClusterConfig
from promptdiffuser.cli.running import exit_status

failures, start, left = int(sys.argv[1]), ray.init, []

def init(*arguments, **options):
    left.append(len(psutil.Process().children(recursive=True)))
    os.environ["RAY_gcs_server_port_wait_time_s"] = "0" if len(left) <= failures else "120"
    return start(*arguments, **options)

ray.init = init
with exit_status():
    cluster.connect(ClusterConfig(local_cpus=2))
    print("started", ray.get(ray.remote(num_cpus=1)(lambda: 7).remote()))
    ray.shutdown()
print("processes before each start", left)
"""


def environment(**extra: str) -> dict[str, str]:
    paths = str(ROOT / "platform")
    return tiny.environment(Path(tempfile.gettempdir())) | {"PYTHONPATH": paths} | extra


def python(*arguments: str, folder: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment(**extra), capture_output=True, text=True, timeout=400
    )


def job(folder: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a job that would start work as soon as it is connected."""
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    return python(str(ROOT / "jobs" / "collect.py"), "quickstart", *tiny.OPTIONS, folder=folder, **store, **extra)


def errors(ended: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in ended.stderr.splitlines() if line.startswith("error: ")]


NO_ADDRESSES = [
    *["http://127.0.0.1:8265", "nonsense", "head:port", "127.0.0.1:99999", "127.0.0.1:0", "other://127.0.0.1:1"],
    f"http://someone:{PASSWORD}@127.0.0.1:8265",
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Address -> how connecting ended, and the seconds it took."""
    with socket.socket() as silent:  # accepts connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        named = {
            "nothing listens": "127.0.0.1:9",
            "no such host": "no-such-host.invalid:6379",
            "silent": f"127.0.0.1:{port}",
            "no client server": "ray://127.0.0.1:9",
        }
        ended = python("-c", ASK, *NO_ADDRESSES, *named.values(), folder=tmp_path_factory.mktemp("asked"))
    assert ended.returncode == 0, ended.stderr
    found = {address: (answer, seconds) for address, answer, seconds in map(json.loads, ended.stdout.splitlines())}
    return {
        name: found[address] for name, address in (named | dict(zip(NO_ADDRESSES, NO_ADDRESSES, strict=True))).items()
    }


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_what_is_no_address_of_a_cluster_is_refused_with_the_form_that_is_meant(
    address: str, answers: dict[str, Any]
) -> None:
    answer, seconds = answers[address]
    for word in ("RAY_ADDRESS=", "head:6379", "auto", "cluster/submit.py"):
        assert word in answer
    assert "\n" not in answer
    assert PASSWORD not in answer
    assert seconds < LIMIT_S


@pytest.mark.parametrize("name", ["nothing listens", "no such host", "silent", "no client server"])
def test_a_cluster_that_does_not_answer_is_refused_in_time(name: str, answers: dict[str, Any]) -> None:
    answer, seconds = answers[name]
    assert answer.startswith("no Ray cluster answers at RAY_ADDRESS=")
    assert seconds < LIMIT_S


def test_a_job_with_a_wrong_address_ends_with_one_line(tmp_path: Path) -> None:
    ended = job(tmp_path, RAY_ADDRESS="http://127.0.0.1:8265")
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(errors(ended)) == 1


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_too_long_for_sockets_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        folder = Path(short) / ("x" * (60 - len(short) - 1))
        folder.mkdir()
        ended = job(tmp_path, **{name: str(folder)})
        assert ended.returncode == 2, ended.stderr
        assert "Traceback" not in ended.stderr
        (error,) = errors(ended)
        assert "RAY_TMPDIR" in error
        assert str(folder) in error
        assert list(folder.glob("ray/session_*")) == []


@pytest.mark.ray
@pytest.mark.parametrize("failures", [1, 2])
def test_a_start_that_fails_is_tried_again_and_leaves_nothing(failures: int, tmp_path: Path) -> None:
    ended = python("-c", START, str(failures), folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "started 7" in ended.stdout
    assert f"processes before each start {[0] * (failures + 1)}" in ended.stdout


@pytest.mark.ray
def test_a_cluster_that_never_starts_is_one_line(tmp_path: Path) -> None:
    ended = python("-c", START, "99", folder=tmp_path, MARK=str(tmp_path))
    assert ended.returncode == 2, ended.stderr
    (error,) = errors(ended)
    assert "Ray did not start on this machine in 3 attempts" in error
    assert [p for p in psutil.process_iter() if str(tmp_path) in environment_of(p)] == []


def environment_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("MARK", "")
    except psutil.Error:
        return ""
