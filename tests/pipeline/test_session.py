"""Stages of a session: real folders and a real MLflow store, with work that takes no time."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from promptdiffuser.errors import UserError
from promptdiffuser.pipeline.graph import Given, Part, Stage, check_names
from promptdiffuser.pipeline.options import JobOptions
from promptdiffuser.pipeline.session import Session
from promptdiffuser.pipeline.stages import pretrain
from promptdiffuser.recipes import RECIPES
from promptdiffuser.training.checkpoint import save_checkpoint
from promptdiffuser.training.precision import best_precision, resolve_precisions
from tests.tiny import ROOT
from tests.training.damage import flip_a_byte

CPU = torch.device("cpu")
WEIGHTS = "model/weights.safetensors"


class Works:
    """A command with one stage that leaves a model and a table, and keeps its finished piece elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.outputs, self.times, self.source = folder / "outputs", 0, Given("source", "somewhere", "content")

    def stage(self, settings: dict[str, Any] | None = None, version: int = 1) -> Stage:
        def work(run: Any) -> None:
            self.times += 1
            if not (run.folder / "model").exists():
                save_checkpoint(run.folder / "model", {"weights": {"w": torch.zeros(9)}}, {})
            (run.folder / "table.json").write_text("[1, 2]\n")
            self.piece.mkdir(exist_ok=True)
            (self.piece / f"made-{self.times}").touch()

        return Stage(
            "small",
            "collect",
            "promptdiffuser small",
            settings or {"width": 3, "by_task": {1: "one"}, "shape": (1, 2)},
            work,
            version,
            {"source": self.source},
            outputs=(Path("table.json"),),
            checkpoints=(Path("model"),),
            parts=(Part("piece", "key", Path("piece")),),
        )

    @property
    def piece(self) -> Path:
        return self.outputs / "quickstart" / "piece"

    def run(self, *rerun: str, accept_stale: bool = False, **changes: Any) -> Path:
        """Make the stage as a new command does."""
        stage = self.stage(**changes)
        check_names([stage], "--rerun", rerun)
        options = JobOptions(RECIPES["quickstart"](), self.outputs, rerun=rerun, accept_stale=accept_stale)
        with Session(options) as session:
            session.make([stage])
            session.require(stage)
            return session.store.folder_of(stage)


@pytest.fixture
def works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Works:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("COLUMNS", "300")
    return Works(tmp_path)


def test_a_finished_stage_is_done_once(works: Works, capsys: pytest.CaptureFixture[str]) -> None:
    assert works.run() == works.run()
    assert works.times == 1
    output = capsys.readouterr().out
    assert "done before" in output
    assert "!" not in output


DAMAGE: dict[str, Callable[[Path], object]] = {
    "model deleted": lambda folder: (
        [path.unlink() for path in (folder / "model").iterdir()] + [(folder / "model").rmdir()]
    ),
    "byte of the model flipped": lambda folder: flip_a_byte(folder / WEIGHTS),
    "manifest lists nothing": lambda folder: (folder / "model" / "manifest.json").write_text("{}"),
    "file deleted": lambda folder: (folder / "table.json").unlink(),
    "file changed": lambda folder: (folder / "table.json").write_text("[1, 3]\n"),
    "record emptied": lambda folder: (folder / "stage.json").write_text(""),
    "record cut": lambda folder: (folder / "stage.json").write_text('{"fingerprint": "'),
    "record of an older version": lambda folder: (folder / "stage.json").write_text('{"seconds": 1, "run": "x"}'),
    "made from another dataset": lambda folder: change(folder, "inputs", {"source": "another content"}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_stage_is_made_again(
    works: Works, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = works.run()
    damage(folder)
    works.run()
    assert works.times == 2
    assert capsys.readouterr().out.count("! small is made again: ") == 1
    works.run()
    assert works.times == 2
    assert (folder / "table.json").read_text() == "[1, 2]\n"


def test_who_reads_a_damaged_stage_is_told_what_repairs_it(works: Works) -> None:
    flip_a_byte(works.run() / WEIGHTS)
    with (
        Session(JobOptions(RECIPES["quickstart"](), works.outputs)) as session,
        pytest.raises(UserError, match=r"small of quickstart is damaged .*run `promptdiffuser small`"),
    ):
        session.require(works.stage())


def test_another_input_makes_another_stage_and_a_changed_one_makes_it_again_from_nothing(works: Works) -> None:
    first = works.run()
    works.source = Given("source", "somewhere", "another content")
    assert works.run() != first
    works.source = Given("source", "elsewhere", "content")
    assert works.run() == first
    assert works.times == 2
    change(first, "inputs", {"source": "another content"})
    (first / "inputs.json").write_text('{"source": "another content"}')
    (first / "checkpoints").mkdir()
    works.run()
    assert works.times == 3
    assert not (first / "checkpoints").exists(), "what another input left must not be gone on from"


def test_another_version_of_its_numbers_is_another_stage(works: Works) -> None:
    assert works.run() != works.run(version=2)
    assert works.times == 2


def change(folder: Path, field: str, value: Any) -> None:
    """Change a field of a stage's record."""
    record = folder / "stage.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {field: value}))


@pytest.mark.parametrize("field", ["key", "settings"])
def test_another_stage_with_the_same_short_name_is_no_hit(works: Works, field: str) -> None:
    change(works.run(), field, "another")
    with pytest.raises(UserError, match="holds another stage"):
        works.run()


def test_a_hit_of_other_source_is_said_and_a_rerun_makes_it_again_from_nothing(
    works: Works, capsys: pytest.CaptureFixture[str]
) -> None:
    path = works.run() / "stage.json"
    record = json.loads(path.read_text())
    assert set(record["source"]) == {"commit", "dirty", "digest"}
    record["source"] = {"commit": "c0ffee", "dirty": "true", "digest": "0123456789abcdef"}
    path.write_text(json.dumps(record))
    (path.parent / "checkpoints").mkdir()
    capsys.readouterr()
    works.run()
    assert works.times == 1
    said = "! small was made by other source (commit c0ffee with changes, digest 01234567); "
    assert said + "--rerun small makes it again, --accept-stale takes it over" in capsys.readouterr().out
    works.run(accept_stale=True)
    assert said + "accepted as what the present source makes" in capsys.readouterr().out
    works.run(accept_stale=True)
    assert "!" not in capsys.readouterr().out
    assert json.loads(path.read_text())["accepted"] == [record["source"]]
    assert works.times == 1
    works.run("small")
    assert works.times == 2
    assert not (path.parent / "checkpoints").exists(), "a rerun must not go on from the old stage"
    assert [made.name for made in works.piece.iterdir()] == ["made-2"]
    capsys.readouterr()
    works.run()
    assert "!" not in capsys.readouterr().out


def test_the_source_is_what_decides_results(tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", str(ROOT / "platform"), str(tmp_path / "platform")], check=True)
    digests = [digest_in(tmp_path)]
    for name in ("methods/prompt_dt.py", "training/guidance.py", "reporting/report.py", "recipes/__init__.py"):
        with (tmp_path / "platform/promptdiffuser" / name).open("a") as file:
            file.write("# changed\n")
        digests.append(digest_in(tmp_path))
    assert len(set(digests)) == 3
    assert digests[2:] == [digests[2]] * 3, "pages and recipes change no number"


def digest_in(folder: Path) -> str:
    program = "from promptdiffuser.pipeline import session; print(session.source()['digest'])"
    path = str(folder / "platform")
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_an_unknown_stage_is_not_made_again(works: Works) -> None:
    with pytest.raises(UserError, match="'smal', which is no stage of this command; known: small"):
        works.run("smal")


def test_auto_is_what_the_hardware_makes_of_it() -> None:
    settings = {"loss": {"precision": "auto", "batch_size": 4}, "few_shot": {2: {"precision": "bf16"}}}
    assert resolve_precisions(settings, CPU) == {
        "loss": {"precision": best_precision(CPU), "batch_size": 4},
        "few_shot": {2: {"precision": "bf16"}},
    }
    if not torch.cuda.is_available():
        assert resolve_precisions(settings, torch.device("cuda"))["loss"]["precision"] == "auto on cuda"


def test_stages_on_other_hardware_are_other_stages() -> None:
    experiment = RECIPES["quickstart"]()
    found = []
    for gpus in (0.0, 1.0):
        cluster = dataclasses.replace(experiment.cluster, gpus_per_worker=gpus)
        stage = pretrain.stage(dataclasses.replace(experiment, cluster=cluster), Given("dataset", "", "content"))
        assert '"auto"' not in json.dumps(stage.settings, default=str)
        found.append(stage.key)
    assert found[0] != found[1] or torch.cuda.is_available()


TWO_AT_ONCE = """
import sys, time
from pathlib import Path
from promptdiffuser.recipes import RECIPES
from promptdiffuser.pipeline.options import JobOptions
from promptdiffuser.pipeline.graph import Stage
from promptdiffuser.pipeline.session import Session

outputs = Path(sys.argv[1])

def work(run):
    (outputs / "at-work").touch()
    with (outputs / "times").open("a") as file:
        file.write("once\\n")
    while not (outputs / "end").exists():
        time.sleep(0.05)

with Session(JobOptions(RECIPES["quickstart"](), outputs)) as session:
    session.make([Stage("small", "collect", "promptdiffuser small", {"width": 3}, work)])
"""


def start(works: Works) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "platform")}
    command = [sys.executable, "-c", TWO_AT_ONCE, str(works.outputs)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_second_of_two_identical_commands_waits_and_finds_the_stage_done(works: Works) -> None:
    first = start(works)
    wait_for(works.outputs / "at-work")
    second = start(works)
    assert second.stdout is not None
    said = next(line for line in second.stdout if line.startswith("!"))
    (works.outputs / "end").touch()
    printed = [process.communicate(timeout=100)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), printed
    assert (works.outputs / "times").read_text() == "once\n"
    assert said.startswith(f"! small waits for process {first.pid} on ")
    assert "done before" in printed[1]
    assert "waits for" not in printed[1]


def test_a_dead_process_keeps_nobody_waiting(works: Works) -> None:
    first = start(works)
    wait_for(works.outputs / "at-work")
    first.kill()
    first.communicate()
    (works.outputs / "end").touch()
    second = start(works)
    printed, _ = second.communicate(timeout=60)
    assert second.returncode == 0, printed
    assert "waits for" not in printed
