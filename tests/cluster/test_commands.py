"""Every job that `cluster/submit.py` offers takes the command that is submitted for it, with the caller's paths."""

import dataclasses
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro

from cluster import submit
from tests.jobs.scripts import ROOT, Runner, runner

CALLER = Path("/home/caller")
ON_EXPERIMENT = ["--dataset", "theirs", "--backbone-checkpoint=models/theirs", "--outputs", "results"]
COMMANDS = {
    "collect": ["quickstart", *ON_EXPERIMENT],
    "pretrain": ["cheetah-vel", *ON_EXPERIMENT],
    "train_diffuser": ["quickstart", "--guidance.weight", "2", *ON_EXPERIMENT],
    "adapt": ["quickstart", *ON_EXPERIMENT],
    "evaluate": ["quickstart", *ON_EXPERIMENT],
    "pipeline": ["quickstart", "--dataset=theirs", "--backbone_checkpoint", "models/theirs"],
    "sweep": ["quickstart-guidance", "--space", "guidance.weight=1,2", *ON_EXPERIMENT],
    "benchmark": ["guidance-ablation", *ON_EXPERIMENT],
    "sampler_table": ["quickstart", *ON_EXPERIMENT],
    "sync": [],
    "describe": ["theirs", "--all", "--histograms", "pictures"],
    "render": ["cheetah-vel", "--output", "film.gif"],
    "import_pickles": ["cheetah-vel", "data/pickles", "theirs", "--tasks", "7", "8"],
    "exchange from-macaw": ["cheetah-vel", "data/macaw", "theirs", "--qualities", "expert"],
    "exchange from-minari": ["promptdiffuser/cheetah-vel/task-7-expert-v0", "theirs"],
    "exchange to-minari": ["theirs", "--tasks", "7"],
}
"""Job -> a command line of it that gives every path that it takes, relative or by default."""
NO_JOBS = {"experts"}


class Parsed(BaseException):
    """Ends a job once its command line is parsed, with what it was parsed to."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    return runner(monkeypatch, capsys)


@pytest.fixture
def parse(run: Runner, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function (shell command) -> options, as the job's own parser makes them."""

    def stop(real: Any) -> Any:
        def parse_only(*arguments: Any, **settings: Any) -> None:
            raise Parsed(real(*arguments, **settings))

        return parse_only

    monkeypatch.setattr(tyro, "cli", stop(tyro.cli))

    def parse(command: str) -> Any:
        python, script, *arguments = shlex.split(command)
        assert python == "python"
        try:
            outcome = run(Path(script).stem, *arguments)
        except Parsed as end:
            return end.args[0]
        pytest.fail(f"{command}\n{outcome.errors}")

    return parse


def places(options: Any) -> Iterator[tuple[str, str | None]]:
    """Yield (name, value) of every option that names a file, a folder or a dataset."""
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            yield from places(value)
        elif Path in (hints[field.name], *typing.get_args(hints[field.name])) or field.name == "dataset":
            yield field.name, None if value is None else str(value)


def test_every_job_is_offered_and_nothing_else() -> None:
    assert {name.split()[0] for name in COMMANDS} == {path.stem for path in (ROOT / "jobs").glob("*.py")} - NO_JOBS
    assert list(COMMANDS) == list(submit.COMMANDS)


@pytest.mark.parametrize("job", COMMANDS)
def test_job_takes_its_command_and_all_paths_are_the_callers(job: str, parse: Any) -> None:
    options = parse(submit.entrypoint(*submit.command_of(*job.split()[:1], [*job.split()[1:], *COMMANDS[job]]), CALLER))
    found = dict(places(options))
    assert found, "the test looks at nothing"
    for name, value in found.items():
        assert value is not None, f"the test gives no {name}"
        assert Path(value).is_relative_to(CALLER), f"{name} is {value}"
