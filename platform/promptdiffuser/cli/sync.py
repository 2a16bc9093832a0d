"""Deliver what experiments have logged while MLflow was away.

    python jobs/sync.py
    MLFLOW_TRACKING_URI=http://tracking:5000 python jobs/sync.py --outputs /shared/outputs

A job does this itself as soon as MLflow is back, and begins with it when it is run again; this is for jobs that ended
before that. It may run beside them.
"""

from dataclasses import dataclass
from pathlib import Path

from promptdiffuser.errors import UserError
from promptdiffuser.paths import local_path
from promptdiffuser.tracking.addresses import shown
from promptdiffuser.tracking.delivery import deliver
from promptdiffuser.tracking.journal import JOURNAL, REFUSED, pending
from promptdiffuser.tracking.store import connect, resolve_uri


@dataclass(frozen=True)
class Sync:
    """Command line of the job."""

    outputs: Path = Path("outputs")
    """Folder below which experiments write everything."""


def main(job: Sync) -> None:
    """Run the job."""
    if not local_path(job.outputs).is_dir():
        raise UserError(f"there is no folder {job.outputs}; name the one of the experiments by --outputs")
    uri = resolve_uri()
    connect(uri)
    left = 0
    for journal in sorted(job.outputs.glob(f"*/{JOURNAL}")):
        before, aside_before = len(pending(journal)), _aside(journal)
        stuck = deliver(uri, journal)
        now, aside = len(pending(journal)), _aside(journal)
        print(f"{journal}: {before - now - (aside - aside_before)} entries delivered, {now} left")
        for run_id, reason in stuck.items():
            print(f"    run {run_id}: {reason}")
        if aside:
            print(f"    {aside} entries that are damaged or that MLflow refuses are in {journal / REFUSED}")
        left += now
    if left:
        raise UserError(f"{left} entries could not be delivered to {shown(uri)}; see above")


def _aside(journal: Path) -> int:
    return len(list((journal / REFUSED).glob("*.json")))
