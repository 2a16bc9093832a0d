"""The wheel on its own, without the checkout: its commands answer, and its data files are in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the files that Git tracks and unpack it into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    source = folder / "source"
    source.mkdir()
    archive = subprocess.run(
        ["tar", "--create", "--null", "--files-from=-"], cwd=ROOT, input=tracked, capture_output=True, check=True
    )
    subprocess.run(["tar", "--extract", f"--directory={source}"], input=archive.stdout, check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, f"--wheel-dir={folder}", str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", f"--target={folder / 'site'}", str(wheel)], check=True)
    return folder / "site"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["run", "quickstart", "--help"], "--diffuser.multi-task.learning-rate"),
        (["plan", "quickstart"], "collect"),
        (["stage", "evaluate", "walker-params", "--help"], "--evaluation.prompts"),
        (["plan", "pick-place"], "evaluate"),
    ],
    ids=" ".join,
)
def test_commands_of_the_wheel(installed: Path, tmp_path: Path, arguments: list[str], shown: str) -> None:
    program = (
        "import promptdiffuser, sys; from promptdiffuser.cli.main import main; print(promptdiffuser.__file__); main()"
    )
    ended = subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(str(installed)), "the checkout must not be what runs"
    assert shown in ended.stdout


def test_what_the_package_reads_is_in_the_wheel(installed: Path) -> None:
    package = ROOT / "platform" / "promptdiffuser"
    tracked = subprocess.run(["git", "ls-files"], cwd=package, capture_output=True, text=True, check=True).stdout
    missing = [name for name in tracked.split() if not (installed / "promptdiffuser" / name).is_file()]
    assert missing == []
