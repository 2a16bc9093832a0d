"""Say whether two trainings are the same: their metrics step by step, and their weights bit by bit.

    python -m tests.tools.compare_runs outputs/one/pretrain-1a2b3c4d outputs/two/pretrain-1a2b3c4d

A run is a training's folder or the id of an MLflow run; weights are compared where both are folders. Times are not
compared, nor steps and metrics that only one of the two has. Exit status: 0 if everything is identical, 1 if something
differs, 2 if a run cannot be read.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from mlflow.exceptions import MlflowException
from rich.console import Console
from rich.table import Table
from torch import Tensor

from promptdiffuser.errors import UserError
from promptdiffuser.tracking.store import connect, resolve_uri
from promptdiffuser.training.checkpoint import load_checkpoint, newest_valid_checkpoint

WIDTH = 150
"""Columns of the table where it is not written to a terminal."""

Metrics = dict[int, dict[str, float]]
"""Step -> name -> value."""


@dataclass(frozen=True)
class Compare:
    """Command line of the tool."""

    run_a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_A")]
    """Folder of a training, or id of an MLflow run."""
    run_b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_B")]
    """The other one."""
    tolerance: float = 0.0
    """Relative difference up to which numbers count as equal: workers of another number add up in another order."""


def read_metrics(run: str) -> Metrics:
    """Return what a run logged; raises `UserError` if there is no such run."""
    return metrics_of_folder(Path(run)) if Path(run).is_dir() else metrics_of_mlflow_run(run)


def metrics_of_folder(folder: Path) -> Metrics:
    checkpoint = newest_valid_checkpoint(folder / "checkpoints")
    history = checkpoint.documents.get("progress", {}).get("history") if checkpoint else None
    if not history:
        raise UserError(f"{folder} has no valid checkpoint of a training; pass the folder that holds checkpoints/")
    return {entry["step"]: {name: value for name, value in entry.items() if name != "step"} for entry in history}


def metrics_of_mlflow_run(run_id: str) -> Metrics:
    metrics: Metrics = defaultdict(dict)
    try:
        client = connect(resolve_uri())
        for name in client.get_run(run_id).data.metrics:
            for point in client.get_metric_history(run_id, name):
                metrics[point.step][name] = point.value
    except (UserError, MlflowException) as error:
        raise UserError(f"{run_id} is no folder, and no MLflow run: {str(error).splitlines()[0]}") from error
    return metrics


def relative_difference(a: float, b: float) -> float:
    """Return |a - b| over the larger of both; infinite if only one is a number."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    difference = abs(a - b) / max(abs(a), abs(b))
    return math.inf if math.isnan(difference) else difference


def compare_metrics(a: Metrics, b: Metrics, tolerance: float, console: Console) -> bool:
    """Print a line for every metric that both have; return whether there is any and all are equal."""
    steps = sorted(a.keys() & b.keys())
    names_a, names_b = ({name for entry in metrics.values() for name in entry} for metrics in (a, b))
    names = sorted(name for name in names_a & names_b if not name.startswith("time/"))
    console.print(f"{len(steps)} logged steps in both; A has {len(a)}, B has {len(b)}")
    table = Table("metric", "", "largest difference", "first at step", "A", "B", "difference there")
    equal = bool(steps and names)
    for name in names:
        # A value that is missing at a step that both have is a difference like any other.
        values = {step: (a[step].get(name, math.nan), b[step].get(name, math.nan)) for step in steps}
        differences = {step: relative_difference(*pair) for step, pair in values.items()}
        largest = max(differences.values(), default=0.0)
        first = next((step for step in steps if differences[step] > tolerance), None)
        if first is None:
            table.add_row(name, f"equal within {tolerance:g}" if largest else "identical", f"{largest:.2g}")
        else:
            there = (str(first), *map(repr, values[first]), f"{differences[first]:.2g}")
            table.add_row(name, "[red]differs[/]", f"{largest:.2g}", *there)
        equal = equal and first is None
    console.print(table)
    return equal


def compare_weights(a: Path, b: Path, tolerance: float, console: Console) -> bool:
    """Print whether two model folders hold the same tensors, or the first that differs; return whether they do."""
    tensors_a, tensors_b = map(tensors_of, (a, b))
    if alone := sorted(tensors_a.keys() ^ tensors_b.keys()):
        console.print(f"models: only one has {alone[0]}")
        return False
    largest = 0.0
    for name, tensor in tensors_a.items():
        # Bits, because -0.0 is not 0.0 and NaN is NaN.
        if torch.equal(*(t.flatten().view(torch.uint8) for t in (tensor, tensors_b[name]))):
            continue
        one, other = tensor.double(), tensors_b[name].double()
        difference = float((one - other).abs().max() / torch.maximum(one.abs().max(), other.abs().max()))
        if not (tolerance and difference <= tolerance):  # also if it is NaN
            console.print(f"models: {name} differs by up to {difference:.2g} of its largest number")
            return False
        largest = max(largest, difference)
    console.print(f"models: equal within {tolerance:g}, up to {largest:.2g}" if largest else "models: equal to the bit")
    return True


def tensors_of(model: Path) -> dict[str, Tensor]:
    """Return the tensors of a model folder; their names tell their form, so those of one name can be subtracted."""
    files = load_checkpoint(model).tensors.items()
    return {f"{file}/{name} {t.dtype} {tuple(t.shape)}": t for file, named in files for name, t in named.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two runs and return the exit status."""
    job = tyro.cli(Compare, args=arguments, description=__doc__)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    try:
        equal = compare_metrics(read_metrics(job.run_a), read_metrics(job.run_b), job.tolerance, console)
        models = [Path(run) / "model" for run in (job.run_a, job.run_b)]
        if all(model.is_dir() for model in models):
            equal = compare_weights(*models, job.tolerance, console) and equal
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
