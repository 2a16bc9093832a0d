"""Open MLflow's pages on the store that runs are logged to."""

import os
import sys
from dataclasses import dataclass

from promptdiffuser.errors import UserError
from promptdiffuser.tracking.addresses import shown
from promptdiffuser.tracking.store import resolve_uri


@dataclass(frozen=True)
class Ui:
    """Command line of the pages."""

    port: int = 5000
    """Port on 127.0.0.1."""


def main(options: Ui) -> None:
    """Become MLflow's server; a store that is a server already has its own pages."""
    uri = resolve_uri()
    if "://" in uri and not uri.startswith("sqlite:"):
        raise UserError(f"the store is a server with pages of its own: {shown(uri)}")
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(options.port)]
    os.execv(sys.executable, [*command, "--backend-store-uri", uri])
