"""Submit a job of this repository to a running Ray cluster and follow it.

    python cluster/submit.py pipeline quickstart
    python cluster/submit.py --address http://head:8265 pretrain cheetah-vel --backbone.layers 4
    python cluster/submit.py describe outputs/quickstart/collect-1a2b3c4d/dataset --histograms pictures

Everything after JOB goes to `jobs/JOB.py`; its positional arguments come before its options. What travels is a copy of
the files that Git tracks, with their uncommitted changes, and it vanishes with the job. Nothing else travels: no data,
no outputs, no `.env`. Without Git the folders jobs/, analysis/ and platform/ travel.

Paths are the caller's: relative ones count from the folder of the caller, and the cluster's machines must see them
under the same path. `--outputs` (default `outputs`) and the MLflow store (MLFLOW_TRACKING_URI, default
`sqlite:///mlflow.db`) too; on a cluster of several machines an MLflow server is the better store. Addresses such as
s3://bucket/folder stay as they are. The file of `pipeline --from-file` is small, so it travels with the code, as does
the .py file of a `--plugin`; a plugin that is a module must be installed on every machine.

A cluster that asks for a token gets the one of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. Proxies,
certificates (REQUESTS_CA_BUNDLE) and RAY_JOB_HEADERS count as they do for `ray job`.

Exit status: the job's own; 2 if it could not be submitted or followed; 130 after Ctrl-C, which leaves the job running.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote
from zipfile import ZIP_DEFLATED, ZipFile

import requests

from promptdiffuser.errors import UserError
from promptdiffuser.paths import local_path
from promptdiffuser.tracking.provenance import COMMIT_VARIABLE, describe_commit

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

Kind = Literal["text", "folder", "address", "file", "plugin"]
"""What a word of a command line names: nothing of the caller's, a place on a filesystem, a place that may also be an
address such as s3://bucket/folder, a small file that travels with the code, or a plugin, which is such a file if its
name ends in .py and otherwise an installed module."""

ON_ALL: dict[str, Kind] = {"--plugin": "plugin"}

ON_EXPERIMENT: dict[str, Kind] = {"--outputs": "folder", "--dataset": "address", "--backbone-checkpoint": "folder"}
COMMANDS: dict[str, dict[str, Kind]] = {
    "collect": ON_EXPERIMENT,
    "pretrain": ON_EXPERIMENT,
    "train_diffuser": ON_EXPERIMENT,
    "adapt": ON_EXPERIMENT,
    "evaluate": ON_EXPERIMENT,
    "pipeline": ON_EXPERIMENT | {"--from-file": "file"},
    "sweep": ON_EXPERIMENT,
    "benchmark": ON_EXPERIMENT,
    "sampler_table": ON_EXPERIMENT,
    "sync": {"--outputs": "folder"},
    "describe": {"DATASET": "address", "--histograms": "folder"},
    "render": {"FAMILY": "text", "--output": "folder"},
    "import_pickles": {"FAMILY": "text", "SOURCE": "folder", "DATASET": "address"},
    "exchange from-macaw": {"FAMILY": "text", "SOURCE": "folder", "DATASET": "address"},
    "exchange from-minari": {"NAME": "text", "DATASET": "address"},
    "exchange to-minari": {"DATASET": "address"},
}
"""Job that can be submitted -> its positional arguments, in order, and its options that name places. `experts` is not
among them: it writes into the source tree, of which a cluster has only a copy."""

ROOT = Path(__file__).resolve().parents[1]
CODE_FOLDERS = ("jobs", "analysis", "platform")
SENT_FOLDER = "sent"
"""Folder of the copy that holds the files of the caller that travel with the code."""
MAX_CODE_BYTES = 100 * 2**20
"""Most that Ray's dashboard takes in one request (ray 2.60, DASHBOARD_CLIENT_MAX_SIZE)."""
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
CONNECT_TIMEOUT_S = 5.0
# The dashboard of a head that has just started answers before the agent that takes jobs does. Ray then says this, after
# waiting 10 s itself (ray 2.60, dashboard/modules/job/job_head.py and dashboard/consts.py).
NO_AGENT = "No available agent to submit job"
AGENT_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30
"""A job that is stopped has so long to tell MLflow before it is killed; Ray's own 3 s are too few on a busy machine."""


def command_of(job: str, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command, with its subcommand, and what follows it; raises `UserError` if none is known."""
    words = [job, *arguments]
    for length in (1, 2):
        if (command := " ".join(words[:length])) in COMMANDS:
            return command, words[length:]
    raise UserError(f"unknown job {job!r}; known: {', '.join(COMMANDS)}")


def words_of(command: str, arguments: Sequence[str]) -> Iterator[tuple[str, str, Kind]]:
    """Yield every word of a command line as (what comes before its value, the value, what the value names).

    Raises:
        UserError: A positional argument is missing or comes after an option.
    """
    kinds = ON_ALL | COMMANDS[command]
    positionals = [name for name in kinds if not name.startswith("-")]
    expected: Kind | None = None
    for word in arguments:
        option, equals, value = word.partition("=")
        kind = kinds.get(option.replace("_", "-")) if option.startswith("--") else None
        if expected:
            yield "", word, kind_of(word, expected)
            expected = None
        elif kind and equals:
            yield f"{option}=", value, kind_of(value, kind)
        elif kind:
            yield "", word, "text"
            expected = kind
        elif positionals and not word.startswith("-"):
            yield "", word, kinds[positionals.pop(0)]
        elif positionals:
            break
        else:
            yield "", word, "text"
    if positionals:
        remedy = f"see `python jobs/{command.split()[0]}.py --help`"
        raise UserError(f"{command} needs {' '.join(positionals)} before its options; {remedy}")


def kind_of(value: str, kind: Kind) -> Kind:
    """Return what a value names, where a plugin counts as what it is."""
    if kind != "plugin":
        return kind
    return "file" if value.endswith(".py") else "text"


def place(value: str, kind: Kind, folder: Path) -> str:
    """Return a value as the job needs it; `folder` is where the caller stands.

    Raises:
        UserError: It is an address where a folder must be.
    """
    if kind == "text" or (kind == "address" and "://" in value):
        return value
    if kind == "file":
        return f"{SENT_FOLDER}/{Path(value).name}"
    return str(folder / (value if kind == "address" else local_path(value)))


def entrypoint(command: str, arguments: Sequence[str], folder: Path) -> str:
    """Return the job's shell command, with the places of a caller in `folder`.

    Raises:
        UserError: A positional argument is missing, or an address is given where a folder must be.
    """
    job, *subcommand = command.split()
    words = list(words_of(command, arguments))
    if "--outputs" in COMMANDS[command] and not any(word.partition("=")[0] == "--outputs" for word in arguments):
        words += [("", "--outputs", "text"), ("", "outputs", "folder")]
    resolved = [before + place(value, kind, folder) for before, value, kind in words]
    return shlex.join(["python", f"jobs/{job}.py", *subcommand, *resolved])


def sent_files(command: str, arguments: Sequence[str], folder: Path) -> list[Path]:
    """Return the files of the caller that travel with the code; raises `UserError` if one cannot be read."""
    files = [folder / value for _, value, kind in words_of(command, arguments) if kind == "file"]
    for path in files:
        if not os.access(path, os.R_OK) or not path.is_file():
            raise UserError(f"{path} cannot be read; name the JSON file of an experiment or the .py file of a plugin")
    return files


def listed_by_git(root: Path, *options: str) -> list[str]:
    """Return the files that `git ls-files` lists; none without Git."""
    try:
        listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z", *options], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [name for name in os.fsdecode(listed.stdout).split("\0") if name]


def code_files(root: Path) -> list[str]:
    """Return the files that travel: those that Git tracks and that are there; without Git, those of the code."""

    def is_code(path: Path) -> bool:
        return not any(part.startswith(".") or part == "__pycache__" for part in path.parts)

    names = listed_by_git(root)
    if not names:
        found = (path.relative_to(root) for folder in CODE_FOLDERS for path in sorted((root / folder).rglob("*")))
        names = [str(path) for path in found if is_code(path)]
    return [name for name in names if (root / name).is_file()]


def pack(root: Path, sent: Sequence[Path], archive: Path) -> None:
    """Write the code, and what the caller sends with it, into a zip file.

    Raises:
        UserError: It is more than a cluster takes.
    """
    names = code_files(root)
    sizes = {PurePath(name): (root / name).stat().st_size for name in names}
    if (total := sum(sizes.values())) > MAX_CODE_BYTES:
        folder, size = largest_folder(sizes)
        raise UserError(
            f"the code is {total / 2**20:.0f} MiB, of which {root / folder} holds {size / 2**20:.0f}; a cluster takes "
            f"{MAX_CODE_BYTES / 2**20:.0f}: untrack data (`git rm -r --cached FOLDER`, and a line in .gitignore)"
        )
    with ZipFile(archive, "w", ZIP_DEFLATED, strict_timestamps=False) as file:
        for name in names:
            file.write(root / name, name)
        for path in sent:
            file.write(path, f"{SENT_FOLDER}/{path.name}")


def largest_folder(sizes: dict[PurePath, int]) -> tuple[PurePath, int]:
    """Return the deepest folder that holds more than half of the bytes of all files, and its bytes."""
    below = Counter[PurePath]()
    for path, size in sizes.items():
        below.update(dict.fromkeys(path.parents, size))
    folder = max((f for f in below if 2 * below[f] > sum(sizes.values())), key=lambda f: len(f.parts))
    return folder, below[folder]


def environment(root: Path, folder: Path) -> dict[str, str]:
    """Return the variables of the job's processes: where to import from, and the caller's stores."""
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if tracking_uri.startswith("sqlite:///"):
        path, mark, query = tracking_uri.removeprefix("sqlite:///").partition("?")
        tracking_uri = f"sqlite:///{quote(str(folder / unquote(path)))}{mark}{query}"
    variables = {
        "PYTHONPATH": "platform",
        "MLFLOW_TRACKING_URI": tracking_uri,
        COMMIT_VARIABLE: describe_commit(root),
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_TIMEOUT_S),
    }
    if minari := os.environ.get("MINARI_DATASETS_PATH"):
        variables["MINARI_DATASETS_PATH"] = str(folder / minari)
    return variables


def has_token() -> bool:
    """Return whether Ray would find a token where it looks for one."""
    stored = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or stored.is_file()


def without_password(address: str) -> str:
    """Return an address as it may be printed."""
    scheme, separator, rest = address.partition("://")
    return scheme + separator + rest.rpartition("@")[2]


def certificates() -> str | Literal[True]:
    """Return the file or folder of trusted certificates, or True for the usual ones, as `requests` chooses.

    Ray's client follows a job's log by another library, which does not look at these variables.
    """
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True


def job_headers() -> dict[str, str]:
    """Return the headers of RAY_JOB_HEADERS; raises `UserError` if they are no JSON object."""
    text = os.environ.get("RAY_JOB_HEADERS") or "{}"
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise UserError('RAY_JOB_HEADERS must be a JSON object such as {"KEY": "VALUE"}') from error


def connect(address: str) -> JobSubmissionClient:
    """Return a client of the cluster, or say in a `UserError` why there is none."""
    shown = without_password(address)
    if not address.startswith(("http://", "https://")):
        raise UserError(f"{shown!r} is not the address of a dashboard; pass one like --address {DEFAULT_ADDRESS}")
    try:  # Ray's client has no timeout and waits for minutes on an address that swallows packets
        requests.get(f"{address}/api/version", headers=job_headers(), timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:
        remedy = "start one with `ray start --head`, or pass --address"
        raise UserError(f"no Ray cluster answers at {shown} ({reason_of(error)}); {remedy}") from error

    # Ray reads both when it is imported, hence the late import. It sends a token only in this mode, and prefers the
    # address in the environment to the one that it is passed.
    if has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address, headers=job_headers(), verify=certificates())
    except AuthenticationError as error:
        reason = "refuses this token" if has_token() else "asks for a token"
        remedy = "set RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's, and RAY_AUTH_MODE to token or nothing"
        raise UserError(f"the cluster at {shown} {reason}; {remedy}") from error
    except (RuntimeError, OSError) as error:
        raise UserError(f"{shown} does not answer like a Ray cluster: {error}") from error


def reason_of(error: Exception) -> str:
    """Return in a few words why a request failed: `requests` wraps the reason in those of urllib3."""
    if isinstance(error, requests.Timeout):
        return f"no answer within {CONNECT_TIMEOUT_S:.0f} s"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy of http_proxy or https_proxy does not lead there; no_proxy names what needs none"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted; REQUESTS_CA_BUNDLE names a file of those that are"
    return str(getattr(next(iter(error.args), None), "reason", error)).rpartition(": ")[2]


def submit_once_ready(client: JobSubmissionClient, **job: Any) -> str:
    """Submit the job, again while the cluster has no agent yet, and return its submission id."""
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    while True:
        try:
            return client.submit_job(**job)
        except (RuntimeError, OSError, ValueError) as error:
            reason = str(error).strip(" .\n").splitlines()[-1]  # the lines before it are the server's traceback
            if NO_AGENT not in reason:
                raise UserError(f"the cluster refused the job: {reason}") from error
            if time.monotonic() > deadline:
                remedy = "if the head's dashboard_agent.log says that the agent's port was taken, start the head again "
                remedy += "with another --dashboard-agent-listen-port"
                raise UserError(f"the cluster took no job: {reason}\n{remedy}") from error
        time.sleep(1.0)


async def print_logs(client: JobSubmissionClient, submission_id: str) -> None:
    """Print what the job prints, as it does, until it ends."""
    async for lines in client.tail_job_logs(submission_id):
        print(lines, end="", flush=True)


def ray_job(verb: str, submission_id: str, address: str) -> str:
    """Return the command of Ray that does something to a job, to be pasted into any folder's shell.

    It needs the caller's exported variables for secrets: RAY_AUTH_TOKEN, RAY_JOB_HEADERS.
    """
    settings = {"RAY_API_SERVER_ADDRESS": without_password(address)}
    if mode := os.environ.get("RAY_AUTH_MODE"):
        settings["RAY_AUTH_MODE"] = mode
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        settings["RAY_AUTH_TOKEN_PATH"] = str(Path.cwd() / path)
    words = [str(Path(sys.executable).with_name("ray")), "job", *verb.split(), submission_id]
    if isinstance(trusted := certificates(), str):
        words += ["--verify", str(Path.cwd() / trusted)]
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in settings.items()), shlex.join(words)])


def follow(client: JobSubmissionClient, submission_id: str, address: str) -> int:
    """Print the job's log until it ends and return the exit status to pass on."""
    from aiohttp import ClientError

    later = f"follow it: {ray_job('logs --follow', submission_id, address)}"
    later += f"\nstop it:   {ray_job('stop', submission_id, address)}"
    try:
        asyncio.run(print_logs(client, submission_id))
        while not (info := client.get_job_info(submission_id)).status.is_terminal():
            time.sleep(0.5)
    except KeyboardInterrupt:
        print(f"\n{submission_id} goes on without you\n{later}", file=sys.stderr)
        return 130
    except (RuntimeError, OSError, ClientError) as error:
        raise UserError(f"lost the cluster while following {submission_id} ({error})\n{later}") from error
    print(f"{submission_id}: {info.status.lower()}", file=sys.stderr)
    return 0 if info.status == "SUCCEEDED" else info.driver_exit_code or 1


def submit(arguments: Sequence[str], root: Path) -> int:
    """Submit the job that the command line asks for and follow it to its exit status."""
    parser = argparse.ArgumentParser(
        prog="cluster/submit.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or DEFAULT_ADDRESS,
        help=f"the dashboard's URL; default: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS, then {DEFAULT_ADDRESS}",
    )
    parser.add_argument("--submission-id", help="a name for this submission; the cluster accepts each only once")
    parser.add_argument("job", metavar="JOB", help=f"one of: {', '.join(COMMANDS)}")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="arguments and options for the job")
    options = parser.parse_args(arguments)
    command, others = command_of(options.job, options.arguments)
    address, folder = options.address.rstrip("/"), Path.cwd()
    start = entrypoint(command, others, folder)
    with tempfile.TemporaryDirectory() as temporary:
        archive = Path(temporary) / "code.zip"
        pack(root, sent_files(command, others, folder), archive)
        client = connect(address)
        submission_id = submit_once_ready(
            client,
            entrypoint=start,
            runtime_env={"working_dir": str(archive), "env_vars": environment(root, folder)},
            submission_id=options.submission_id,
        )
    print(f"submitted {submission_id} to {without_password(address)}", file=sys.stderr)
    untracked = listed_by_git(root, "--others", "--exclude-standard", "--", *(f"{each}/*.py" for each in CODE_FOLDERS))
    if left_behind := sorted(set(untracked) - set(code_files(root))):
        names = ", ".join(left_behind[:3]) + ", ..." * (len(left_behind) > 3)
        print(f"not sent, as Git does not track it: {names}; `git add` sends it next time", file=sys.stderr)
    return follow(client, submission_id, address)


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    """Run the command line and return its exit status."""
    try:
        return submit(arguments, root)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
