"""What a run was made with: the commit, whether files were changed since, and the versions that decide results."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from promptdiffuser.tracking.names import COMMIT_TAG, DIRTY_TAG, VERSION_TAG
from promptdiffuser.versions import versions_of

PACKAGES = ("torch", "ray", "mujoco", "promptdiffuser")
COMMIT_VARIABLE = "PROMPTDIFFUSER_COMMIT"
"""Environment variable that names the commit where the code is a copy without its history, as in a Ray job."""
DIRTY_SUFFIX = "-dirty"


def typed_command() -> str:
    """Return the command that was typed to start this process."""
    program, *arguments = sys.argv
    started = ["python", program] if program.endswith(".py") else [Path(program).name]
    return " ".join([*started, *arguments])


@cache
def provenance() -> dict[str, str]:
    """Return the tags; those of the commit are missing where the code is neither in Git nor named by the variable."""
    versions = {"python": sys.version.split()[0]} | versions_of(PACKAGES)
    tags = {VERSION_TAG + name: found for name, found in versions.items()}
    if commit := os.environ.get(COMMIT_VARIABLE) or describe_commit(Path(__file__).parent):
        tags[COMMIT_TAG] = commit.removesuffix(DIRTY_SUFFIX)
        tags[DIRTY_TAG] = str(commit.endswith(DIRTY_SUFFIX)).lower()
    return tags


def describe_commit(folder: Path) -> str:
    """Return the commit of a folder's Git tree, with the suffix -dirty if tracked files were changed; "" without."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
