"""The command `promptdiffuser`: what it lists, what it refuses, and what it imports before it knows what to do."""

import dataclasses
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from promptdiffuser.cli import recipe_options
from promptdiffuser.cli.main import COMMANDS, main
from promptdiffuser.errors import UserError
from promptdiffuser.pipeline.options import SweepOptions
from promptdiffuser.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*(ROOT / "jobs").glob("*.py"), *(ROOT / "analysis").glob("*.py")])
HEAVY = ("matplotlib", "metaworld", "mlflow", "pandas", "ray", "sklearn", "torch")
IMPORTED = """
import contextlib, io, sys
from promptdiffuser.cli.main import main

with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main(sys.argv[1:])
print(*sys.modules)
"""


def imported_by(*arguments: str) -> set[str]:
    """Return the heavy libraries that a process has imported when it has answered a command line."""
    command = [sys.executable, "-c", IMPORTED, *arguments]
    modules = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "promptdiffuser" in modules
    return modules & set(HEAVY)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("runn",), ("data",), ("stage", "pretran", "quickstart")])
def test_an_answer_about_the_commands_imports_no_heavy_library(arguments: tuple[str, ...]) -> None:
    assert imported_by(*arguments) == set()


@pytest.mark.parametrize(
    "arguments",
    [("run", "--help"), ("run", "quickstart", "--help"), ("sweep", "quickstrt"), ("run", "quickstart", "--nothing")],
    ids=" ".join,
)
def test_an_answer_about_options_imports_only_what_defines_them(arguments: tuple[str, ...]) -> None:
    assert imported_by(*arguments) <= {"torch"}


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert name in shown
        assert command.summary in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_names_options_and_a_function_that_takes_them(name: str) -> None:
    command = COMMANDS[name]
    options, work = (
        getattr(import_module(module), attribute)
        for module, attribute in (reference.split(":") for reference in (command.options, command.work))
    )
    assert callable(options) or name == "data exchange"  # whose options are a union, one dataclass per direction
    assert len(inspect.signature(work).parameters) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runn"], "error: unknown command 'runn'; did you mean 'run'? `promptdiffuser --help` lists all"),
        (["xyz"], "error: unknown command 'xyz'; `promptdiffuser --help` lists all"),
        (["data"], "error: `data` needs one of describe, render, import-pickles, exchange"),
        (["run", "quickstrt"], "error: unknown recipe 'quickstrt'; did you mean 'quickstart'? known: quickstart, "),
        (["run", "--from-run", "a", "--from-file", "b"], "error: name one saved experiment, by --from-run or "),
        (["run", "nowhere.py"], "error: nowhere.py is not there; name a recipe or a Python file that defines one"),
        (["run", "quickstart", "--quality", "mixed"], "error: quality is mixed, which collection.qualities (expert)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(message)
    assert shown.err.count("\n") == 1


RECIPE = """
from dataclasses import replace
from promptdiffuser.experiment import Experiment
from promptdiffuser.recipes import SWEEPS

def small() -> Experiment:
    \"\"\"A small experiment of mine.\"\"\"
    return Experiment(name="mine", seed=_seed())

def wide() -> Experiment:
    return replace(small(), name="wide")

def swept():
    return SWEEPS["quickstart-guidance"]()

def _seed():
    return 3
"""


def test_a_recipe_may_be_a_function_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RECIPE)
    (tmp_path / "one.py").write_text("from promptdiffuser.recipes.quickstart import quickstart\n\n" + ONE)
    options = recipe_options.experiment([f"{tmp_path}/mine.py:wide", "--backbone.layers", "2"], "program", "summary")
    assert (options.experiment.name, options.experiment.seed, options.experiment.backbone.layers) == ("wide", 3, 2)
    assert recipe_options.experiment([f"{tmp_path}/one.py"], "program", "summary").experiment.name == "only"
    with pytest.raises(UserError, match=r"name a function of .*mine\.py:FUNCTION; it defines small, wide, swept"):
        recipe_options.experiment([f"{tmp_path}/mine.py"], "program", "summary")
    with pytest.raises(UserError, match="swept returns Sweep, which program cannot take"):
        recipe_options.experiment([f"{tmp_path}/mine.py:swept"], "program", "summary")
    assert isinstance(recipe_options.any_recipe([f"{tmp_path}/mine.py:swept"], "program", "summary"), SweepOptions)


ONE = """
def only():
    from dataclasses import replace
    return replace(quickstart(), name="only")
"""


def test_options_change_a_saved_experiment(tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    saved.write_text(dataclasses.replace(RECIPES["quickstart"](), seed=5).to_json())
    arguments = ["--from-file", str(saved), "--evaluation.prompts", "3", "--outputs", "elsewhere"]
    options = recipe_options.experiment_or_saved(arguments, "program", "summary")
    assert (options.experiment.seed, options.experiment.evaluation.prompts) == (5, 3)
    assert options.outputs == Path("elsewhere")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_script_is_a_few_lines_that_call_a_command(script: Path) -> None:
    text = script.read_text()
    assert text.count("\n") <= 20
    assert [name for name in COMMANDS if "main([" + "".join(f'"{word}", ' for word in name.split()) in text]
    assert "sys.path" not in text


def test_the_console_script_is_installed() -> None:
    script = Path(sys.executable).with_name("promptdiffuser")
    shown = subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("usage: promptdiffuser COMMAND")


def test_ui_becomes_the_server_of_mlflow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    started = list[str]()
    monkeypatch.setattr("os.execv", lambda program, command: started.extend(command))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////some/mlflow.db")
    main(["ui", "--port", "5077"])
    assert started[2:] == [
        *["mlflow", "ui", "--host", "127.0.0.1", "--port", "5077"],
        *["--backend-store-uri", "sqlite:////some/mlflow.db"],
    ]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:s3cret@example.org")
    with pytest.raises(SystemExit, match="2"):
        main(["ui"])
    refused = capsys.readouterr().err
    assert "the store is a server with pages of its own: https://" in refused
    assert "s3cret" not in refused
