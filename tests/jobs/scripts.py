"""Runs the scripts in jobs/ in this process, as `python jobs/NAME.py` does: importing the libraries takes seconds."""

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    status: int
    output: str
    errors: str


Runner = Callable[..., Outcome]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    """Return a function (name of the job, its arguments...) -> outcome."""

    def run(name: str, *arguments: object) -> Outcome:
        monkeypatch.setattr("sys.argv", [f"jobs/{name}.py", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "300")
        capsys.readouterr()
        try:
            runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run
