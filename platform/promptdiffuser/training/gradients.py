"""The gradient of a batch that is cut into pieces and computed in a chosen number format."""

from collections.abc import Callable

import torch
from torch import Tensor

from promptdiffuser.training.engine import FlatParameters
from promptdiffuser.training.precision import autocast, loss_scales


def accumulate(
    parameters: FlatParameters,
    loss_of: Callable[[slice], Tensor],
    num_rows: int,
    pieces: int,
    precision: str,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return a loss and its gradient (P,), added up over pieces of a batch.

    Args:
        parameters: What the gradient is with respect to.
        loss_of: The additive part of the loss that some rows of the batch have.
        num_rows: Rows of the batch; a worker that has none contributes zeros.
        pieces: How many pieces the batch is cut into; only one is in memory at a time.
        precision: Number format of the products.
        device: Where the model is.
    """
    loss, gradient = parameters.vector.new_zeros(()), torch.zeros_like(parameters.vector)
    for piece in range(min(pieces, num_rows)):
        with autocast(precision, device):
            loss_of_piece = loss_of(slice(piece, None, pieces))
        loss += loss_of_piece.detach()
        gradient += _scaled_gradient(parameters, loss_of_piece, loss_scales(precision))
    return loss, gradient


def _scaled_gradient(parameters: FlatParameters, loss: Tensor, scales: tuple[float, ...]) -> Tensor:
    """Return the gradient by the first scale that keeps it finite, or by the last if none does."""
    *larger, last = scales
    for scale in larger:
        gradient = parameters.gradient(loss * scale, keep_graph=True) / scale
        if gradient.isfinite().all():
            return gradient
    return parameters.gradient(loss * last) / last
