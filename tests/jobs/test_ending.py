"""How jobs end that are stopped by SIGTERM: real MuJoCo, real Ray, real MLflow, small numbers."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests import tiny
from tests.jobs.test_pipeline import wait_for

MESSAGE = "terminated; the same command continues where this one stopped"


@pytest.mark.ray
def test_sigterm_ends_a_job_as_ctrl_c_does_and_loses_nothing(tmp_path: Path) -> None:
    """Also in a process that ignores Ctrl-C, as those that a script starts in the background do."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which children inherit
    try:
        terminate_in(tmp_path, "pretrain", "quickstart/pretrain-*/checkpoints/step-*")
        terminate_in(tmp_path, "adapt", "quickstart/adaptations/*/task-*/policy")
    finally:
        signal.signal(signal.SIGINT, before)
    terminate_in(tmp_path, "evaluate", "quickstart/evaluations/*/blocks", to_group=True)
    output = tiny.run_pipeline(tmp_path)
    assert output.count("done before") == 4
    assert set(statuses(tmp_path).values()) == {"FINISHED"}


WHERE_PYTHON_DROPS_EXCEPTIONS = """
import signal, time, weakref
from promptdiffuser.cli.running import exit_status

class Thing: pass

with exit_status():
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.{signal}))
    del thing
    time.sleep(20)
    print("went on")
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_whose_exception_python_drops_ends_a_job_all_the_same(sent: signal.Signals) -> None:
    command = [sys.executable, "-c", WHERE_PYTHON_DROPS_EXCEPTIONS.format(signal=sent.name)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (128 + sent, "")
    assert "Traceback" not in ended.stderr


def terminate_in(folder: Path, stage: str, sign_of_work: str, to_group: bool = False) -> None:
    """Run the tiny pipeline, send it SIGTERM once a stage is at work, and look at its end."""
    process = tiny.start_pipeline(folder)
    wait_for(process, folder, sign_of_work)
    (os.killpg if to_group else os.kill)(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert output.rstrip().endswith(MESSAGE)
    assert "Traceback" not in output
    assert "SIGTERM" not in output
    ended = statuses(folder)
    assert "RUNNING" not in ended.values()
    assert ended["quickstart"] == ended[stage] == "KILLED"


def statuses(folder: Path) -> dict[str, str]:
    """Return the status of every run in MLflow by its name."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("quickstart").experiment_id])
    return {run.info.run_name: run.info.status for run in runs}
