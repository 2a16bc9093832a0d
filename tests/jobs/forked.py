"""Runs jobs in processes that are forks of one that has imported what they import, which takes seconds.

python -m tests.jobs.forked < COMMANDS

COMMANDS is a JSON list of [folder, environment, script, arguments]. A job runs in its folder, with the environment
added to this one's, and leaves its messages there in `stderr`. The exit statuses come out as a JSON list in the same
order, null for a job that had to be stopped.
"""

import json
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import promptdiffuser.pipeline.run  # noqa: F401, it imports what any stage needs

ROOT = Path(__file__).resolve().parents[2]
JOBS = ROOT / "jobs"
LIMIT_S = 300.0
"""Nothing that is refused needs that long, even on a busy machine."""


def run(folder: str, environment: Mapping[str, str], script: str, arguments: Sequence[str]) -> None:
    """Become the job."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    sys.argv = [f"{script}.py", *arguments]
    runpy.run_path(str(JOBS / f"{script}.py"), run_name="__main__")


def main() -> None:
    """Run one job after the other."""
    statuses = []
    for command in json.load(sys.stdin):
        process = multiprocessing.get_context("fork").Process(target=run, args=command)
        process.start()
        process.join(LIMIT_S)
        statuses.append(process.exitcode)
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
    print(json.dumps(statuses))


if __name__ == "__main__":
    main()
