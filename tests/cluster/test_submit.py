"""`cluster/submit.py` against a real Ray head node that asks for a token.

The job is a small script in a scratch repository, so these tests are about the submission and nothing else.
"""

import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from cluster import submit
from promptdiffuser.errors import UserError
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60
JOB_TIMEOUT_S = 400
# Below what Linux hands out to whoever asks for any port, Ray's own processes among them (ip_local_port_range: 32768 to
# 60999), and above the ports that Ray's workers take by default (10002 to 19999).
PORTS = range(20_000, 32_768)

ECHO = """
    import os, sys, time
    import ray
    from scratchpackage import GREETING

    @ray.remote
    def greeting():
        from scratchpackage import GREETING
        return GREETING

    ray.init()
    print("driver", GREETING, "worker", ray.get(greeting.remote()))
    print("store", os.environ["MLFLOW_TRACKING_URI"])
    print("arguments", sys.argv[1:], flush=True)
    sys.exit(3 if "--fail" in sys.argv else 0)
"""


@dataclass(frozen=True)
class Head:
    """A running head node and the token that it asks for."""

    address: str
    token: str


def free_ports(count: int) -> list[int]:
    """Return different ports that nothing listens on."""
    free: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == count:
            break
    return free


def clean_environment(**extra: str) -> dict[str, str]:
    """Return the environment without anything that points Ray or MLflow elsewhere, and without a stored token."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"  # a job's command is `python jobs/...`
    return kept | {"PATH": path, "HOME": "/nonexistent"} | extra


def answers(url: str, token: str) -> bool:
    """Return whether the page is there for those who have the token."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        return urllib.request.urlopen(request, timeout=5).status == 200
    except OSError:
        return False


def processes_with(text: str) -> list[int]:
    """Return the ids of the processes whose command line or environment holds `text`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            content = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:  # it has ended, or is somebody else's
            continue
        if text.encode() in content:
            found.append(int(folder.name))
    return found


@contextmanager
def running_head() -> Iterator[Head]:
    """Start a head node beside whatever Ray runs on this machine, and end it without touching that.

    `ray stop` would end every Ray process of the user; the fresh token in their environment tells ours apart.

    Raises:
        TimeoutError: The dashboard, or the agent that takes jobs, did not answer.
    """
    port, dashboard, agent, client = free_ports(4)
    head = Head(f"http://127.0.0.1:{dashboard}", uuid.uuid4().hex)
    ray = Path(sys.executable).parent / "ray"
    ports = f"--port={port} --dashboard-port={dashboard} --dashboard-agent-listen-port={agent}"
    ports += f" --ray-client-server-port={client} --min-worker-port=0 --max-worker-port=0"
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = f"{ray} start --head --block --node-ip-address=127.0.0.1 --num-cpus=4 {ports}"
        command += f" --object-store-memory=100000000 --temp-dir={folder} --disable-usage-stats"
        log = Path(folder) / "start.log"
        with log.open("w") as output:
            environment = clean_environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=head.token)
            process = subprocess.Popen(
                shlex.split(command), env=environment, stdout=output, stderr=output, start_new_session=True
            )
        try:
            for page in f"{head.address}/api/version", f"http://127.0.0.1:{agent}/api/healthz":
                deadline = time.monotonic() + START_TIMEOUT_S
                while not answers(page, head.token):
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise TimeoutError(f"{page} does not answer:\n{log.read_text()}")
                    time.sleep(0.2)
            yield head
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for left_over in processes_with(head.token):
                with suppress(ProcessLookupError):
                    os.kill(left_over, signal.SIGKILL)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Return a head node that takes jobs.

    Started once more if need be: where another process takes its port first, Ray's agent stays alive without its HTTP
    server (ray-project/ray issue 51925), and the cluster refuses every job.
    """
    with ExitStack() as stack:
        try:
            running = stack.enter_context(running_head())
        except TimeoutError:
            running = stack.enter_context(running_head())
        yield running


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a folder that looks like this repository to `submit`."""
    for name, text in {
        "jobs/echo.py": textwrap.dedent(ECHO),
        "jobs/_helper.py": "",
        "jobs/experts.py": "",
        "platform/scratchpackage/__init__.py": "GREETING = 'hello'\n",
    }.items():
        path = tmp_path / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "repository"


def run_submit(repository: Path, arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person would, from the folder above the repository."""
    program = "import sys; from pathlib import Path; from cluster.submit import main; "
    program += "sys.exit(main(sys.argv[2:], Path(sys.argv[1])))"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    return subprocess.run(
        [sys.executable, "-c", program, str(repository), *arguments],
        env=clean_environment(PYTHONPATH=paths, **environment),
        cwd=repository.parent,
        capture_output=True,
        text=True,
        timeout=JOB_TIMEOUT_S,
        check=False,
    )


@pytest.mark.ray
def test_job_runs_with_code_store_and_outputs_of_the_caller(head: Head, repository: Path) -> None:
    arguments = ["--address", head.address, "echo", "quickstart", "--name", "two words"]
    result = run_submit(repository, arguments, RAY_AUTH_TOKEN=head.token)
    assert result.returncode == 0, result.stderr
    assert "driver hello worker hello" in result.stdout
    assert f"store sqlite:///{repository.parent}/mlflow.db" in result.stdout
    expected = ["quickstart", "--name", "two words", "--outputs", str(repository.parent / "outputs")]
    assert f"arguments {expected}" in result.stdout
    assert "succeeded" in result.stderr


@pytest.mark.ray
def test_exit_status_is_the_jobs_and_an_id_is_accepted_once(head: Head, repository: Path) -> None:
    arguments = ["--submission-id", "only-once", "echo", "quickstart", "--fail"]
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": head.token, "RAY_API_SERVER_ADDRESS": head.address}
    result = run_submit(repository, arguments, **access)
    assert result.returncode == 3, result.stderr
    assert "'--fail'" in result.stdout

    again = run_submit(repository, arguments, **access)
    assert again.returncode == 2
    assert "only-once already exists" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.ray
@pytest.mark.parametrize(
    ("access", "reason"),
    [
        ({"RAY_AUTH_TOKEN": "wrong" * 8}, "refuses this token"),
        ({}, "asks for a token"),
        ({"RAY_AUTH_MODE": "token"}, "asks for a token"),
    ],
    ids=["wrong", "none", "none-in-token-mode"],
)
def test_wrong_or_missing_token_is_one_clear_line(
    head: Head, repository: Path, access: Mapping[str, str], reason: str
) -> None:
    result = run_submit(repository, ["--address", head.address, "echo", "quickstart"], **access)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.ray
def test_submitted_pipeline_ends_with_the_table_of_a_local_run(head: Head, tiny_run: Path, tmp_path: Path) -> None:
    arguments = ["--address", head.address, "pipeline", *tiny.arguments(tmp_path, tiny.WITHOUT_DIFFUSER)]
    store = f"sqlite:///{tmp_path}/mlflow.db"
    result = run_submit(ROOT, arguments, RAY_AUTH_TOKEN=head.token, MLFLOW_TRACKING_URI=store)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "tasks never seen in training" in result.stdout
    assert tiny.results(tmp_path)["prompt-dt"] == tiny.results(tiny_run)["prompt-dt"]


class LateAgent:
    """Refuses jobs as Ray's client does while the cluster has no agent, then takes them."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals

    def submit_job(self, **job: str) -> str:
        self.refusals -= 1
        if self.refusals >= 0:
            raise RuntimeError(f"Request failed with status code 500: {submit.NO_AGENT}, please try again later..")
        return job["submission_id"]


def test_a_head_that_has_just_started_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard = Path(find_spec("ray").submodule_search_locations[0]) / "dashboard"
    assert submit.NO_AGENT in (dashboard / "modules" / "job" / "job_head.py").read_text()  # Ray still words it so
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert submit.submit_once_ready(LateAgent(refusals=2), submission_id="mine") == "mine"
    monkeypatch.setattr(submit, "AGENT_TIMEOUT_S", 0.0)
    with pytest.raises(UserError, match=r"took no job.*\n.*--dashboard-agent-listen-port"):
        submit.submit_once_ready(LateAgent(refusals=2), submission_id="mine")


def test_unreachable_cluster_is_one_line_in_time(repository: Path) -> None:
    (port,) = free_ports(1)
    with socket.socket() as silent:  # accepts connections and never answers, the slowest way to be unreachable
        silent.bind(("127.0.0.1", port))
        silent.listen()
        start = time.monotonic()
        result = run_submit(repository, ["--address", f"http://127.0.0.1:{port}", "echo", "quickstart"])
    assert time.monotonic() - start < 15
    assert result.returncode == 2
    assert result.stderr.startswith("error: no Ray cluster answers at")
    assert len(result.stderr.splitlines()) == 1


def test_unknown_job_lists_the_known_ones(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main(["ecko", "quickstart"], repository) == 2
    assert capsys.readouterr().err == "error: unknown job 'ecko'; known: echo\n"


def test_address_must_be_a_dashboards(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main(["--address", "head:6379", "echo", "quickstart"], repository) == 2
    assert "not the address of a dashboard" in capsys.readouterr().err


@pytest.mark.parametrize("form", [["--outputs", "here"], ["--outputs=here"], ["--outputs", "/data/here"]])
def test_outputs_are_absolute_and_named_once(form: list[str]) -> None:
    command = shlex.split(submit.entrypoint("evaluate", ["quickstart", *form, "--seed", "1"], Path("/data")))
    assert command == ["python", "jobs/evaluate.py", "quickstart", "--seed", "1", "--outputs", "/data/here"]


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        (None, "sqlite:////data/mlflow.db"),
        ("sqlite:///runs/mine.db", "sqlite:////data/runs/mine.db"),
        ("sqlite:////srv/mine.db", "sqlite:////srv/mine.db"),
        ("http://tracking:5000", "http://tracking:5000"),
    ],
)
def test_store_is_the_callers(given: str | None, resolved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if given is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert submit.runtime_env(Path("/code"), Path("/data"))["env_vars"]["MLFLOW_TRACKING_URI"] == resolved


def test_the_job_knows_the_commit_of_its_code(tmp_path: Path) -> None:
    """The copy that travels has no history."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    (tmp_path / "code.py").write_text("1")
    for command in (["init", "-q"], ["add", "code.py"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert submit.runtime_env(tmp_path, tmp_path)["env_vars"]["PROMPTDIFFUSER_COMMIT"] == head
    (tmp_path / "code.py").write_text("2")
    assert submit.runtime_env(tmp_path, tmp_path)["env_vars"]["PROMPTDIFFUSER_COMMIT"] == f"{head}-dirty"
