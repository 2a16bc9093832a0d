"""Rules for what is kept of the downstream gradient beside that of the denoising loss (paper, Eq. 8 and 9).

The paper follows grad L_DM + lambda * Proj(grad L_DT), where Proj leads onto a subspace S_DM-perp whose basis
u_1 ... u_M it does not define. Each rule here is one reading of it, or one from the work its notation comes from.
docs/guidance.md compares them. The default, `complement`, is the literal first-order reading: the complement of the
line along grad L_DM, over all parameters at once, so that to first order the downstream step leaves L_DM as it is.

A rule sees gradients that are already summed over the workers, so it is the same for any number of them.
Axes: P parameters; a weight is a matrix (out, in), a bias (out, 1): the weight of an input that is always 1.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from promptdiffuser.registry import Registry

ROUNDING = 1e-5
"""Share of a gradient's length below which what a projection leaves of it is rounding noise (float32)."""

Rule = Callable[[Tensor, Tensor], Tensor]


class Projection(Protocol):
    """Keeps a part of the downstream gradient (P,), given the denoising gradient (P,) of the same update."""

    memory: dict[str, Tensor]
    """What is remembered from update to update, changed in place; checkpoints keep it."""

    def __call__(self, gradient_dm: Tensor, gradient_dt: Tensor) -> Tensor:
        """Return what is kept (P,); called once an update."""


def complement(gradient_dm: Tensor, gradient_dt: Tensor) -> Tensor:
    """Remove from the downstream gradient its component along the denoising gradient."""
    squared_norm = gradient_dm.dot(gradient_dm)
    if squared_norm == 0:
        return gradient_dt
    return gradient_dt - (gradient_dt.dot(gradient_dm) / squared_norm) * gradient_dm


def complement_in_conflict(gradient_dm: Tensor, gradient_dt: Tensor) -> Tensor:
    """Remove that component where it would raise L_DM, and leave it where it lowers L_DM.

    This is ProGrad (Zhu et al. 2023; BeierZhu/Prompt-align, `prograd_backward_and_update` with lambda_ 1) and the half
    of PCGrad (Yu et al. 2020) that acts on grad L_DT. The other half changes grad L_DM, which Eq. 9 keeps whole.
    """
    return complement(gradient_dm, gradient_dt) if gradient_dm.dot(gradient_dt) < 0 else gradient_dt


def unprojected(gradient_dm: Tensor, gradient_dt: Tensor) -> Tensor:
    """Keep the downstream gradient as it is: the paper's ablation without projection, the plain sum."""
    return gradient_dt


class Pairwise:
    """Applies a rule to consecutive parts of both gradients."""

    def __init__(self, rule: Rule, sizes: Sequence[int]) -> None:
        """Cut the vectors into parts of `sizes`; one part is the rule over all parameters."""
        self.rule, self.sizes = rule, list(sizes)
        self.memory: dict[str, Tensor] = {}

    def __call__(self, gradient_dm: Tensor, gradient_dt: Tensor) -> Tensor:
        parts = zip(gradient_dm.split(self.sizes), gradient_dt.split(self.sizes), strict=True)
        return torch.cat([self.rule(*pair) for pair in parts])


class BasisComplement:
    """The reading closest to the symbols u_1 ... u_M and B of Eq. 8: gradient projection memory, per weight.

    As in GPM (Saha, Garg, Roy 2021; sahagobinda/GPM, `main_cifar100.py`) the leading right singular vectors V (in, r)
    that hold a share `energy` of what is remembered are removed: G <- G - G V V^T. GPM remembers inputs of the layers;
    here it is the denoising gradients (out, in) of past updates, stacked and weighted by decay^age. A gradient of a
    weight is a sum of outer products with the layer's inputs, so its right singular vectors lie in the same space.
    """

    def __init__(self, parameters: Sequence[Tensor], energy: float, decay: float) -> None:
        """Remember the Gram matrix (in, in) of each weight's stack, which has its right singular vectors."""
        self.shapes = [(len(parameter), -1) for parameter in parameters]
        self.sizes, self.energy, self.decay = [parameter.numel() for parameter in parameters], energy, decay
        matrices = [parameter.detach().reshape(shape) for parameter, shape in zip(parameters, self.shapes, strict=True)]
        self.memory = {f"gram_{n}": m.new_zeros(m.shape[1], m.shape[1]) for n, m in enumerate(matrices)}

    def __call__(self, gradient_dm: Tensor, gradient_dt: Tensor) -> Tensor:
        parts = zip(
            gradient_dm.split(self.sizes),
            gradient_dt.split(self.sizes),
            self.shapes,
            self.memory.values(),
            strict=True,
        )
        return torch.cat([self._kept(dm.view(shape), dt.view(shape), gram) for dm, dt, shape, gram in parts])

    def _kept(self, gradient_dm: Tensor, gradient_dt: Tensor, gram: Tensor) -> Tensor:
        gram.mul_(self.decay).add_(gradient_dm.T @ gradient_dm)
        directions = leading_directions(gram, self.energy).to(gradient_dt)
        return (gradient_dt - (gradient_dt @ directions) @ directions.T).flatten()


def leading_directions(gram: Tensor, energy: float) -> Tensor:
    """Return the fewest eigenvectors (in, r) that hold a share `energy` of a Gram matrix (in, in); of zeros, none."""
    # In float64, as a Gram matrix squares the range of what it is made of.
    values, vectors = torch.linalg.eigh(gram.double())
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    held_before = values.cumsum(0) - values
    leading: Tensor = vectors[:, (held_before < energy * values.sum()) & (values > 0)]
    return leading


class OfMean:
    """Applies a projection to the running mean of the denoising gradient: one minibatch's is mostly noise."""

    def __init__(self, projection: Projection, parameters: Sequence[Tensor], decay: float) -> None:
        """Remember the mean (P,), which a fraction `decay` of stays from update to update."""
        self.projection, self.decay = projection, decay
        self.mean = parameters[0].new_zeros(sum(parameter.numel() for parameter in parameters))
        self.memory = {"mean": self.mean} | projection.memory

    def __call__(self, gradient_dm: Tensor, gradient_dt: Tensor) -> Tensor:
        self.mean.lerp_(gradient_dm, 1 - self.decay)
        return self.projection(self.mean, gradient_dt)


Builder = Callable[[Sequence[Tensor], float, float], Projection]


def _over_all(rule: Rule) -> Builder:
    return lambda parameters, energy, decay: Pairwise(rule, [sum(parameter.numel() for parameter in parameters)])


def _by_tensor(rule: Rule) -> Builder:
    return lambda parameters, energy, decay: Pairwise(rule, [parameter.numel() for parameter in parameters])


def _complement_of_mean(parameters: Sequence[Tensor], energy: float, decay: float) -> Projection:
    return OfMean(_over_all(complement)(parameters, energy, decay), parameters, decay)


def _basis_of_mean(parameters: Sequence[Tensor], energy: float, decay: float) -> Projection:
    # The mean is the memory already: the basis is that of its present value alone.
    return OfMean(BasisComplement(parameters, energy, decay=0.0), parameters, decay)


PROJECTIONS: Registry[Builder] = Registry(
    "projection",
    {
        "complement": _over_all(complement),
        "complement-tensor": _by_tensor(complement),
        "complement-mean": _complement_of_mean,
        "conflict": _over_all(complement_in_conflict),
        "conflict-tensor": _by_tensor(complement_in_conflict),
        "basis": BasisComplement,
        "basis-mean": _basis_of_mean,
        "sum": _over_all(unprojected),
    },
)


def build_projection(name: str, parameters: Sequence[Tensor], energy: float, decay: float) -> Projection:
    """Return a new projection for a model's trainable parameters; `energy` and `decay` are of those with a memory."""
    return PROJECTIONS[name](parameters, energy, decay)


def weigh(
    gradient_dm: Tensor, gradient_dt: Tensor, projected: Tensor, weight: float, match_norms: bool
) -> tuple[Tensor, dict[str, float]]:
    """Return the guidance, weight * Proj(grad L_DT) (P,), and what to log about the two gradients.

    With `match_norms` the projected gradient is first scaled to the length of grad L_DM: the two lengths differ by
    orders of magnitude, and a weight on unmatched gradients means something else in every run.
    """
    norm_dm, norm_dt, norm_projected = gradient_dm.norm(), gradient_dt.norm(), projected.norm()
    smallest = torch.finfo(gradient_dt.dtype).tiny
    scale = weight * norm_dm / norm_projected.clamp_min(smallest) if match_norms else norm_dm.new_tensor(weight)
    # What is left of a gradient that lay along the other one is rounding noise; it must not be blown up to full length.
    if norm_projected <= ROUNDING * norm_dt:
        scale = torch.zeros_like(norm_dm)
    cosine = gradient_dm.dot(gradient_dt) / (norm_dm * norm_dt).clamp_min(smallest)
    removed = 1 - norm_projected / norm_dt.clamp_min(smallest)
    metrics = {"norm_dm": norm_dm, "norm_dt": norm_dt, "cosine": cosine, "share_removed": removed}
    return scale * projected, {name: float(value) for name, value in metrics.items()}
