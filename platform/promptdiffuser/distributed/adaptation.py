"""Adaptations of many methods to many tasks, one Ray task each; a worker process takes many in turn."""

from collections.abc import Iterator, Sequence

from promptdiffuser.distributed.tasks import run_tasks, task_device
from promptdiffuser.methods.cells import AdaptationCell
from promptdiffuser.tracking.store import RunLog


def adapt_cells(
    cells: Sequence[tuple[AdaptationCell, RunLog | None]], num_gpus: float = 0.0
) -> Iterator[AdaptationCell]:
    """Run cells and yield each when its result is written.

    Args:
        cells: The cells, each with the run that its training's history goes to, if it trains.
        num_gpus: Share of a GPU that each takes.
    """
    for (cell, _), _ in run_tasks(_adapt_cell, cells, num_gpus):
        yield cell


def _adapt_cell(item: tuple[AdaptationCell, RunLog | None]) -> None:
    cell, run = item
    device = task_device()
    if run is None:
        cell.run(device)
        return
    cell.run(device, run.log_history)
    run.finish()
