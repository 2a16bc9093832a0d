"""`cluster/submit.py` against a real Ray head node that asks for a token.

The job is a small script in a scratch repository, so these tests are about the submission and nothing else.
"""

import os
import random
import shlex
import signal
import socket
import socketserver
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest

from cluster import submit
from promptdiffuser.errors import UserError
from promptdiffuser.tasks import FAMILIES
from tests import tiny
from tests.data.synthetic import write_dataset

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 180
JOB_TIMEOUT_S = 400
# Below what Linux hands out to whoever asks for any port, Ray's own processes among them (ip_local_port_range: 32768 to
# 60999), and above the ports that Ray's workers take by default (10002 to 19999).
PORTS = range(20_000, 32_768)

ECHO = """
    import os, sys
    from pathlib import Path
    import ray
    from scratchpackage import GREETING

    @ray.remote
    def greeting():
        from scratchpackage import GREETING
        return GREETING

    ray.init()
    print("driver", GREETING, "worker", ray.get(greeting.remote()))
    print("store", os.environ["MLFLOW_TRACKING_URI"])
    print("arguments", sys.argv[1:])
    print("files", sorted(str(path) for path in Path().rglob("*") if path.is_file() and path.suffix != ".pyc"))
    if Path("sent/saved.json").exists():
        print("saved", Path("sent/saved.json").read_text())
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
    """Return a folder without Git that looks like this repository to `submit`."""
    for name, text in {
        "jobs/pipeline.py": textwrap.dedent(ECHO),
        "platform/scratchpackage/__init__.py": "GREETING = 'hello'\n",
    }.items():
        path = tmp_path / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "repository"


def start_submit(repository: Path, folder: Path, arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start the command line as a person in `folder` would."""
    program = "import sys; from pathlib import Path; from cluster.submit import main; "
    program += "sys.exit(main(sys.argv[2:], Path(sys.argv[1])))"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    return subprocess.Popen(
        [sys.executable, "-c", program, str(repository), *arguments],
        env=clean_environment(PYTHONPATH=paths, **environment),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_submit(
    repository: Path, arguments: list[str], folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end; the caller stands in the folder above the repository, or in `folder`."""
    process = start_submit(repository, folder or repository.parent, arguments, **environment)
    output, errors = process.communicate(timeout=JOB_TIMEOUT_S)
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


@pytest.mark.ray
def test_job_runs_with_code_store_and_outputs_of_the_caller(head: Head, repository: Path) -> None:
    saved = repository.parent / "saved.json"
    saved.write_text("a saved experiment")
    arguments = ["--address", head.address, "pipeline", "quickstart", "--name", "two words", "--dataset", "theirs"]
    result = run_submit(repository, [*arguments, "--from-file=saved.json"], RAY_AUTH_TOKEN=head.token)
    assert result.returncode == 0, result.stderr
    assert "driver hello worker hello" in result.stdout
    assert f"store sqlite:///{repository.parent}/mlflow.db" in result.stdout
    expected = ["quickstart", "--name", "two words", "--dataset", f"{repository.parent}/theirs"]
    expected += ["--from-file=sent/saved.json", "--outputs", f"{repository.parent}/outputs"]
    assert f"arguments {expected}" in result.stdout
    assert "saved a saved experiment" in result.stdout
    assert "succeeded" in result.stderr


@pytest.mark.ray
def test_exit_status_is_the_jobs_and_an_id_is_accepted_once(head: Head, repository: Path) -> None:
    arguments = ["--submission-id", "only-once", "pipeline", "quickstart", "--fail"]
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
    result = run_submit(repository, ["--address", head.address, "pipeline", "quickstart"], **access)
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


@pytest.mark.ray
def test_jobs_without_outputs_run_on_the_callers_folders(head: Head, tmp_path: Path) -> None:
    write_dataset(tmp_path / "theirs", FAMILIES["cheetah-vel"], [7])
    access = {"RAY_AUTH_TOKEN": head.token, "RAY_API_SERVER_ADDRESS": head.address}
    described = run_submit(ROOT, ["describe", "theirs", "--histograms", "pictures"], tmp_path, **access)
    assert described.returncode == 0, described.stdout + described.stderr
    assert f"{tmp_path}/theirs" in described.stdout
    assert (tmp_path / "pictures" / "returns-expert.png").is_file()

    film = ["render", "cheetah-vel", "--output", "film.gif", "--size", "64", "--quality", "random"]
    rendered = run_submit(ROOT, film, tmp_path, **access)
    assert rendered.returncode == 0, rendered.stdout + rendered.stderr
    assert (tmp_path / "film.gif").is_file()


@pytest.mark.ray
def test_data_and_secrets_beside_the_code_stay_here(head: Head, repository: Path) -> None:
    git(repository, "init", "-q")
    git(repository, "add", ".")
    (repository / ".env").write_text("SECRET=1")
    (repository / "jobs" / "new.py").write_text("")
    (repository / "datasets" / "published").mkdir(parents=True)
    with (repository / "datasets" / "published" / "big.parquet").open("wb") as file:
        file.truncate(700 * 2**20)
    result = run_submit(repository, ["--address", head.address, "pipeline", "quickstart"], RAY_AUTH_TOKEN=head.token)
    assert result.returncode == 0, result.stderr
    assert f"files {['jobs/pipeline.py', 'platform/scratchpackage/__init__.py']}" in result.stdout
    assert "not sent, as Git does not track it: jobs/new.py" in result.stderr


@pytest.mark.ray
def test_dashboard_is_reached_past_a_proxy_that_does_not_count_for_it(head: Head, repository: Path) -> None:
    proxies = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.0/8"}
    arguments = ["--address", head.address, "pipeline", "quickstart"]
    result = run_submit(repository, arguments, RAY_AUTH_TOKEN=head.token, **proxies)
    assert result.returncode == 0, result.stderr
    assert "driver hello" in result.stdout


@contextmanager
def behind_tls(address: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Put a TLS endpoint before a server and return its address and the certificate to trust."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    host, port = address.removeprefix("http://").split(":")

    def copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with (
                suppress(OSError),
                context.wrap_socket(self.request, server_side=True) as client,
                socket.create_connection((host, int(port))) as server,
            ):
                back = threading.Thread(target=copy, args=(server, client))
                back.start()
                copy(client, server)
                back.join()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_address[1]}", certificate
        server.shutdown()


@pytest.mark.ray
def test_certificates_are_those_that_requests_trusts(head: Head, repository: Path, tmp_path: Path) -> None:
    with behind_tls(head.address, tmp_path) as (address, certificate):
        arguments = ["--address", address, "pipeline", "quickstart"]
        refused = run_submit(repository, arguments, RAY_AUTH_TOKEN=head.token)
        trusted = run_submit(repository, arguments, RAY_AUTH_TOKEN=head.token, REQUESTS_CA_BUNDLE=str(certificate))
    assert refused.returncode == 2
    assert "its certificate is not trusted" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert trusted.returncode == 0, trusted.stderr
    assert "driver hello" in trusted.stdout, "the log is followed over TLS too"


def run_states(store: Path) -> set[str]:
    """Return the states of all runs in an MLflow store; none while it is being made."""
    with suppress(sqlite3.OperationalError), sqlite3.connect(f"file:{store}?mode=ro", uri=True) as database:
        return {state for (state,) in database.execute("select status from runs")}
    return set()


@pytest.mark.ray
def test_job_is_followed_and_stopped_by_the_printed_commands(head: Head, tmp_path: Path) -> None:
    access = {"RAY_AUTH_TOKEN": head.token}
    job = ["collect", "quickstart", "--collection.episodes-per-task", "4000"]
    options = ["--address", head.address, "--submission-id", "stopped"]
    process = start_submit(ROOT, tmp_path, [*options, *job], **access)
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while "RUNNING" not in run_states(tmp_path / "mlflow.db"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.5)
    time.sleep(5)  # the stage is at work, on rollout actors
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, output + errors
    commands = dict(line.split(": ", 1) for line in errors.splitlines() if line.startswith(("follow it", "stop it")))
    assert head.token not in errors

    def paste(command: str) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, shell=True, env=clean_environment(**access), cwd="/", text=True, **pipes)

    follower, stopper = paste(commands["follow it"]), paste(commands["stop it"])
    assert "was stopped" in stopper.communicate(timeout=120)[0]
    assert "was stopped" in follower.communicate(timeout=120)[0]
    assert run_states(tmp_path / "mlflow.db") == {"KILLED"}


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
        result = run_submit(repository, ["--address", f"http://127.0.0.1:{port}", "pipeline", "quickstart"])
    assert time.monotonic() - start < 30
    assert result.returncode == 2
    assert result.stderr.startswith("error: no Ray cluster answers at")
    assert len(result.stderr.splitlines()) == 1


def test_unknown_job_lists_the_known_ones(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for unknown in (["ecko", "quickstart"], ["workspace"], ["exchange", "to-nowhere"]):
        assert submit.main(unknown, repository) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: unknown job {unknown[0]!r}; known: collect, ")
        assert "exchange to-minari" in error
        assert len(error.splitlines()) == 1


def test_address_must_be_a_dashboards(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main(["--address", "head:6379", "pipeline", "quickstart"], repository) == 2
    assert "not the address of a dashboard" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("evaluate quickstart --outputs here --seed 1", "quickstart --outputs /data/here --seed 1"),
        ("evaluate quickstart --outputs=here", "quickstart --outputs=/data/here"),
        ("evaluate quickstart --outputs /srv/here", "quickstart --outputs /srv/here"),
        ("evaluate quickstart", "quickstart --outputs /data/outputs"),
        ("evaluate quickstart --dataset s3://bucket/d", "quickstart --dataset s3://bucket/d --outputs /data/outputs"),
        ("describe gs://bucket/d --histograms=h", "gs://bucket/d --histograms=/data/h"),
        ("describe --histograms h theirs", "--histograms /data/h /data/theirs"),
        ("render --output f.gif hopper-params --task 7", "--output /data/f.gif hopper-params --task 7"),
        ("exchange to-minari theirs --tasks 7", "to-minari /data/theirs --tasks 7"),
        ("describe theirs --plugin a/own.py --plugin=b.own", "/data/theirs --plugin sent/own.py --plugin=b.own"),
        ("pipeline --from-file a/saved.json --outputs o", "--from-file sent/saved.json --outputs /data/o"),
    ],
)
def test_paths_are_the_callers(given: str, resolved: str) -> None:
    job, *arguments = given.split()
    command = shlex.split(submit.entrypoint(*submit.command_of(job, arguments), Path("/data")))
    assert command == ["python", f"jobs/{job}.py", *resolved.split()]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("describe --all theirs", "describe needs DATASET before its options"),
        ("import_pickles cheetah-vel pickles", "import_pickles needs DATASET before its options"),
        ("pipeline --from-file nowhere.json", "nowhere.json cannot be read"),
        (
            "pipeline quickstart --outputs s3://me:secret@bucket/outputs",
            "outputs on object stores are not supported yet",
        ),
        (
            "pipeline quickstart --backbone-checkpoint=s3://bucket/model",
            "outputs on object stores are not supported yet",
        ),
    ],
)
def test_what_cannot_be_submitted_is_one_line(
    arguments: str, reason: str, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main(arguments.split(), repository) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert reason in error
    assert "secret" not in error
    assert len(error.splitlines()) == 1


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def packed(root: Path, archive: Path) -> dict[str, str]:
    """Return what travels: name -> content."""
    submit.pack(root, [], archive)
    with ZipFile(archive) as file:
        return {name: file.read(name).decode() for name in file.namelist()}


def test_what_git_tracks_travels_as_it_is_now_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    (repository / ".gitignore").write_text("outputs/\njobs/forced.py\n")
    (repository / "jobs" / "forced.py").write_text("tracked though ignored")
    (repository / "jobs" / "deleted.py").write_text("")
    git(repository, "init", "-q")
    git(repository, "add", "--force", ".")
    git(repository, "commit", "-q", "-m", "first")
    (repository / "jobs" / "pipeline.py").write_text("changed since")
    (repository / "jobs" / "deleted.py").unlink()
    (repository / ".env").write_text("SECRET=1")
    for folder in ("datasets/published", "outputs"):
        (repository / folder).mkdir(parents=True)
        with (repository / folder / "big.parquet").open("wb") as file:
            file.truncate(700 * 2**20)
    travels = packed(repository, tmp_path / "code.zip")
    tracked = {".gitignore", "jobs/forced.py", "jobs/pipeline.py", "platform/scratchpackage/__init__.py"}
    assert travels.keys() == tracked
    assert travels["jobs/pipeline.py"] == "changed since"


def test_without_git_the_code_travels_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    for name in (".env", "mlflow.db", "outputs/a.json", "jobs/.env", "jobs/__pycache__/pipeline.pyc"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("stays")
    expected = {"jobs/pipeline.py", "platform/scratchpackage/__init__.py"}
    assert packed(repository, tmp_path / "code.zip").keys() == expected


def test_too_much_code_names_the_folder_that_holds_it(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in range(3):
        path = repository / "datasets" / "published" / f"task-{task}" / "a.parquet"
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            file.truncate(40 * 2**20)
    git(repository, "init", "-q")
    git(repository, "add", ".")
    assert submit.main(["pipeline", "quickstart"], repository) == 2
    error = capsys.readouterr().err
    assert f"{repository}/datasets/published holds 120" in error
    assert "git rm" in error
    assert len(error.splitlines()) == 1


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
    assert submit.environment(Path("/code"), Path("/data"))["MLFLOW_TRACKING_URI"] == resolved


def test_the_job_knows_the_commit_of_its_code(tmp_path: Path) -> None:
    """The copy that travels has no history."""
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert submit.environment(tmp_path, tmp_path)["PROMPTDIFFUSER_COMMIT"] == head
    (tmp_path / "code.py").write_text("2")
    assert submit.environment(tmp_path, tmp_path)["PROMPTDIFFUSER_COMMIT"] == f"{head}-dirty"
