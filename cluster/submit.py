"""Submit a job of this repository to a running Ray cluster and follow it.

    python cluster/submit.py pipeline quickstart
    python cluster/submit.py --address http://head:8265 pretrain cheetah-vel --backbone.layers 4

Everything after JOB goes to `jobs/JOB.py`. The code travels as a copy that vanishes with the job, so the two places
that must outlive it are resolved here, against the folder of the caller: `--outputs` (default `outputs`) and the
MLflow store (MLFLOW_TRACKING_URI, default `sqlite:///mlflow.db`). On a cluster of several machines both must be storage
that every machine sees under the same path; an MLflow server is the better store there.

A cluster that asks for a token gets the one of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

Exit status: the job's own; 2 if it could not be submitted or followed; 130 after Ctrl-C, which leaves the job running.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import time
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

from promptdiffuser.errors import UserError
from promptdiffuser.tracking.provenance import COMMIT_VARIABLE, describe_commit

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
CONNECT_TIMEOUT_S = 5.0
# The dashboard of a head that has just started answers before the agent that takes jobs does. Ray then says this, after
# waiting 10 s itself (ray 2.60, dashboard/modules/job/job_head.py and dashboard/consts.py).
NO_AGENT = "No available agent to submit job"
AGENT_TIMEOUT_S = 30.0
# Trains the experts that the package ships: it writes into the source tree, of which a cluster has only a copy.
LOCAL_JOBS = {"experts"}
# Ray leaves out what .gitignore names; these must not travel from a tree without one either.
EXCLUDES = [".git", ".venv", ".*_cache", "__pycache__", "outputs", "mlflow.db*", "mlartifacts", "mlruns", "*.log"]


def known_jobs(root: Path) -> list[str]:
    """Return the names that can be submitted."""
    return sorted(path.stem for path in (root / "jobs").glob("[!_]*.py") if path.stem not in LOCAL_JOBS)


def entrypoint(job: str, arguments: Sequence[str], folder: Path) -> str:
    """Return the job's shell command, with `--outputs` made absolute against `folder`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--outputs", default="outputs")
    known, others = parser.parse_known_args(arguments)
    return shlex.join(["python", f"jobs/{job}.py", *others, "--outputs", str(folder / known.outputs)])


def runtime_env(root: Path, folder: Path) -> dict[str, Any]:
    """Return what the job's processes need: the code, where to import it from, and the caller's MLflow store."""
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if tracking_uri.startswith("sqlite:///"):
        tracking_uri = f"sqlite:///{folder / tracking_uri.removeprefix('sqlite:///')}"
    return {
        "working_dir": str(root),
        "excludes": EXCLUDES,
        "env_vars": {
            "PYTHONPATH": "platform",
            "MLFLOW_TRACKING_URI": tracking_uri,
            COMMIT_VARIABLE: describe_commit(root),
        },
    }


def has_token() -> bool:
    """Return whether Ray would find a token where it looks for one."""
    stored = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or stored.is_file()


def connect(address: str) -> JobSubmissionClient:
    """Return a client of the cluster, or say in a `UserError` why there is none."""
    if not address.startswith(("http://", "https://")):
        raise UserError(f"{address!r} is not the address of a dashboard; pass one like --address {DEFAULT_ADDRESS}")
    try:  # Ray's client has no timeout and waits for minutes on an address that swallows packets
        urlopen(f"{address}/api/version", timeout=CONNECT_TIMEOUT_S).close()
    except HTTPError:
        pass  # something answered; what it wants, such as a token, is for Ray's client to find out
    except (OSError, HTTPException) as error:
        remedy = "start one with `ray start --head`, or pass --address"
        raise UserError(f"no Ray cluster answers at {address} ({error}); {remedy}") from error

    # Ray reads both when it is imported, hence the late import. It sends a token only in this mode, and prefers the
    # address in the environment to the one that it is passed.
    if has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        reason = "refuses this token" if has_token() else "asks for a token"
        remedy = "set RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's, and RAY_AUTH_MODE to token or nothing"
        raise UserError(f"the cluster at {address} {reason}; {remedy}") from error
    except (RuntimeError, OSError) as error:
        raise UserError(f"{address} does not answer like a Ray cluster: {error}") from error


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


def follow(client: JobSubmissionClient, submission_id: str, address: str) -> int:
    """Print the job's log until it ends and return the exit status to pass on."""
    from aiohttp import ClientError

    later = f"follow it: ray job logs --follow {submission_id} --address {address}"
    later += f"\nstop it:   ray job stop {submission_id} --address {address}"
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
    environment = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    parser.add_argument(
        "--address",
        default=environment or DEFAULT_ADDRESS,
        help="the dashboard's URL; default: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS, then %(default)s",
    )
    parser.add_argument("--submission-id", help="a name for this submission; the cluster accepts each only once")
    parser.add_argument("job", metavar="JOB", help=f"one of: {', '.join(known_jobs(root))}")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="RECIPE and options for the job")
    options = parser.parse_args(arguments)
    if options.job not in known_jobs(root):
        raise UserError(f"unknown job {options.job!r}; known: {', '.join(known_jobs(root))}")

    address = options.address.rstrip("/")
    client = connect(address)
    submission_id = submit_once_ready(
        client,
        entrypoint=entrypoint(options.job, options.arguments, Path.cwd()),
        runtime_env=runtime_env(root, Path.cwd()),
        submission_id=options.submission_id,
    )
    print(f"submitted {submission_id} to {address}", file=sys.stderr)
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
