"""Paths of files and folders that must be on this machine's filesystem."""

import re
from pathlib import Path

from promptdiffuser.errors import UserError


def local_path(path: str | Path) -> Path:
    """Return a path of this machine's filesystem.

    Raises:
        UserError: It is an address such as s3://bucket/folder, even where `Path` has made it s3:/bucket/folder. Only
            its scheme is shown, as the rest may hold a password.
    """
    if address := re.match(r"([a-z][a-z0-9+.-]+):/", str(path), re.IGNORECASE):
        raise UserError(
            f"{address[1]}://... is not a folder: outputs on object stores are not supported yet, nor are models, only "
            "datasets; name a folder, on a cluster of several machines one that all of them see"
        )
    return Path(path)
