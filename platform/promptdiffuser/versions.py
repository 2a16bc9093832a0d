"""Versions of packages as runs and datasets record them."""

from collections.abc import Iterable
from importlib.metadata import version

import promptdiffuser


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each package; ours is known without being installed, as where only its code was copied."""
    return {name: promptdiffuser.__version__ if name == "promptdiffuser" else version(name) for name in names}
