"""What the denoiser predicts: the noise, the data x0, or a mixture of both.

All three say the same about x0 and differ in which noise levels the loss weighs and where errors grow: a predicted
noise is divided by the signal that is left, which is little at high noise; a predicted x0 is not.

Axes: B rows, X features. `signal` and `deviation` are sqrt(abar_n) and sqrt(1 - abar_n), (B, 1) or scalar.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from promptdiffuser.registry import Registry


@dataclass(frozen=True)
class Prediction:
    """One quantity that determines x0 at a known noise level."""

    target: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """(x0 (B, X), noise (B, X), signal, deviation) -> what the denoiser should say (B, X)."""
    x0: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """(noised (B, X), predicted (B, X), signal, deviation) -> x0 (B, X)."""


PREDICTIONS = Registry(
    "prediction",
    {
        # Ho, Jain, Abbeel 2020, equations 9 and 14.
        "noise": Prediction(
            target=lambda x0, noise, signal, deviation: noise,
            x0=lambda noised, predicted, signal, deviation: (noised - deviation * predicted) / signal,
        ),
        # Ho, Jain, Abbeel 2020, section 3.2; Diffuser (Janner et al. 2022) predicts it as well.
        "x0": Prediction(
            target=lambda x0, noise, signal, deviation: x0,
            x0=lambda noised, predicted, signal, deviation: predicted,
        ),
        # Salimans & Ho 2022, appendix D. With the schedule edm it is EDM's preconditioning for data of deviation 1.
        "v": Prediction(
            target=lambda x0, noise, signal, deviation: signal * noise - deviation * x0,
            x0=lambda noised, predicted, signal, deviation: signal * noised - deviation * predicted,
        ),
    },
)
