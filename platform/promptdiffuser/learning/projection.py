"""Rules that join the gradient of the denoising loss with that of the downstream loss (paper, Eq. 8 and 9).

The paper projects grad L_DT onto a subspace S_DM-perp whose basis it does not define. The default here, `complement`,
is the literal first-order reading: the complement of the line along grad L_DM, over all parameters at once, so that to
first order the downstream step leaves the denoising loss as it is.
"""

from collections.abc import Callable

import torch
from torch import Tensor

ROUNDING = 1e-5
"""Share of a gradient's length below which what a projection leaves of it is rounding noise (float32)."""


def complement(gradient_dm: Tensor, gradient_dt: Tensor) -> Tensor:
    """Remove from the downstream gradient (P,) its component along the denoising gradient (P,)."""
    squared_norm = gradient_dm.dot(gradient_dm)
    if squared_norm == 0:
        return gradient_dt
    return gradient_dt - (gradient_dt.dot(gradient_dm) / squared_norm) * gradient_dm


def plain_sum(gradient_dm: Tensor, gradient_dt: Tensor) -> Tensor:
    """Keep the downstream gradient as it is: the paper's ablation without projection."""
    return gradient_dt


PROJECTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"complement": complement, "sum": plain_sum}


def join(
    gradient_dm: Tensor, gradient_dt: Tensor, projection: str, weight: float, match_norms: bool
) -> tuple[Tensor, dict[str, float]]:
    """Return grad L_DM + weight * Proj(grad L_DT) and what to log about it.

    With `match_norms` the projected gradient is first scaled to the length of grad L_DM: the two lengths differ by
    orders of magnitude, and a weight on unmatched gradients means something else in every run.
    """
    projected = PROJECTIONS[projection](gradient_dm, gradient_dt)
    norm_dm, norm_dt, norm_projected = gradient_dm.norm(), gradient_dt.norm(), projected.norm()
    smallest = torch.finfo(gradient_dt.dtype).tiny
    scale = weight * norm_dm / norm_projected.clamp_min(smallest) if match_norms else norm_dm.new_tensor(weight)
    # What is left of a gradient that lay along the other one is rounding noise; it must not be blown up to full length.
    if norm_projected <= ROUNDING * norm_dt:
        scale = torch.zeros_like(norm_dm)
    cosine = gradient_dm.dot(gradient_dt) / (norm_dm * norm_dt).clamp_min(smallest)
    removed = 1 - norm_projected / norm_dt.clamp_min(smallest)
    metrics = {"norm_dm": norm_dm, "norm_dt": norm_dt, "cosine": cosine, "share_removed": removed}
    return gradient_dm + scale * projected, {name: float(value) for name, value in metrics.items()}
