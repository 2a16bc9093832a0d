"""Optimising the prompts of the training tasks, one Ray task each."""

from collections.abc import Iterator, Sequence

from promptdiffuser.distributed.tasks import run_tasks, task_device
from promptdiffuser.training.optimised_prompts import PromptOptimisation


def optimise_prompts(pieces: Sequence[PromptOptimisation], num_gpus: float = 0.0) -> Iterator[PromptOptimisation]:
    """Run pieces of work, each on a share of a GPU, and yield each when its prompts are written."""
    for piece, _ in run_tasks(_optimise, pieces, num_gpus):
        yield piece


def _optimise(piece: PromptOptimisation) -> None:
    piece.run(task_device())
