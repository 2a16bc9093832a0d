"""Rules on the shape of the repository that no linter knows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "platform" / "promptdiffuser"
MAX_BYTES = 2_000_000


def test_platform_is_not_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists(), "it would shadow the standard library's `platform`"


def test_standard_platform_module_is_found_from_the_root() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.system(), platform.__file__)"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "platform"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(ROOT / "platform") not in result.stdout


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert folders, "the package is empty"
    missing = sorted(str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists())
    assert not missing, f"without __init__.py: {', '.join(missing)}"


def test_no_file_in_the_repository_is_large() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    large = [str(path.relative_to(ROOT)) for path in paths if path.is_file() and path.stat().st_size > MAX_BYTES]
    assert not large, f"over 2 MB: {', '.join(large)}"


def test_shipped_experts_are_small() -> None:
    weights = (PACKAGE / "tasks" / "expert_weights").glob("*")
    assert sum(path.stat().st_size for path in weights) < MAX_BYTES
