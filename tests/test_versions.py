"""The version of this package is known wherever its code is."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import promptdiffuser

ROOT = Path(__file__).resolve().parents[1]

ONLY_ON_PATH = """
import sys
from importlib.metadata import Distribution, PackageNotFoundError, version

installed = Distribution.from_name

def without_ours(name):
    if name == "promptdiffuser":
        raise PackageNotFoundError(name)
    return installed(name)

Distribution.from_name = without_ours
sys.path.insert(0, sys.argv[1])

from promptdiffuser.data.manifest import package_versions
from promptdiffuser.tracking.provenance import provenance

print(provenance()["promptdiffuser.version.promptdiffuser"], package_versions()["promptdiffuser"])
"""


def test_code_that_is_not_installed_records_its_version() -> None:
    """As in an image where only the code was copied, on PYTHONPATH."""
    command = [sys.executable, "-c", ONLY_ON_PATH, str(ROOT / "platform")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout.split() == [promptdiffuser.__version__] * 2, ended.stderr


def test_an_installed_package_has_the_same_version() -> None:
    assert version("promptdiffuser") == promptdiffuser.__version__
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]
