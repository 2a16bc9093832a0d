"""Control: prompts drawn from a Gaussian fitted to the few-shot prompts of the task.

It lives in the space that the diffuser's prompts do, and its prompts have returns-to-go and timesteps of the few-shot
episodes in turn, as the diffuser's. A handful of prompts says little about a covariance of a hundred features, so it is
shrunk towards its own diagonal, by as much as the few-shot prompts themselves say is best.

Axes: N few-shot prompts, B rows, X features.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Method, register
from promptdiffuser.rng import normal_rows
from promptdiffuser.rollout.policies import AdaptedPolicy


def adapt(inputs: AdaptationInputs) -> Adaptation:
    """Fit and draw; what is drawn is clipped to the data's bounds."""
    few_shot = inputs.few_shot.pool.prompts
    space = PromptSpace.fit(inputs.normaliser, few_shot, inputs.family.horizon)
    gaussian = Gaussian.fit(space.encode(few_shot))
    sizes = gaussian.deviations_NX.shape
    normal = normal_rows(inputs.num_prompts, (sum(sizes),), inputs.seed, "gaussian-prompt", inputs.task)
    x_BX = gaussian.draw(*normal.to(inputs.device).split(sizes, dim=1)).clamp(space.low, space.high)
    return Adaptation(AdaptedPolicy(inputs.backbone, space.decode(x_BX, inputs.few_shot_prompts())))


@dataclass(frozen=True)
class Gaussian:
    """N(mean, (1 - shrinkage) S + shrinkage diag(S)), where S = deviations' deviations is the sample covariance."""

    mean_X: Tensor
    deviations_NX: Tensor
    """From the mean, over sqrt(N - 1)."""
    shrinkage: float

    @staticmethod
    def fit(x_NX: Tensor) -> "Gaussian":
        """Fit to some prompts; a single one has no spread, and all that is drawn equals it."""
        mean_X = x_NX.mean(0)
        deviations_NX = (x_NX - mean_X) / math.sqrt(max(1, len(x_NX) - 1))
        return Gaussian(mean_X, deviations_NX, best_shrinkage(deviations_NX))

    def draw(self, weights_BN: Tensor, noise_BX: Tensor) -> Tensor:
        """Return the prompts (B, X) that standard normal weights and noise make.

        A combination of the deviations with such weights has covariance S, so no X by X matrix is needed.
        """
        together_BX, apart_BX = weights_BN @ self.deviations_NX, noise_BX * self.deviations_NX.norm(dim=0)
        drawn_BX: Tensor = (
            self.mean_X + math.sqrt(1 - self.shrinkage) * together_BX + math.sqrt(self.shrinkage) * apart_BX
        )
        return drawn_BX


def best_shrinkage(deviations_NX: Tensor) -> float:
    """Return the weight of the diagonal with the least expected squared error of the correlations.

    Schäfer & Strimmer 2005, table 2, target D, on the correlations r_ij = sum_k w_kij: the sum over i != j of the
    estimated Var(r_ij), which is N / (N - 1) sum_k (w_kij - r_ij / N)^2, over that of r_ij^2, at most 1.
    """
    num_prompts = len(deviations_NX)
    standard_NX = F.normalize(deviations_NX, dim=0)
    products_NXX = standard_NX[:, :, None] * standard_NX[:, None, :]
    correlations_XX = products_NXX.sum(0)
    variances_XX = (products_NXX - correlations_XX / num_prompts).square().sum(0)
    variances_XX = variances_XX * num_prompts / max(1, num_prompts - 1)
    squares_XX = correlations_XX.square()
    off_diagonal = ~torch.eye(len(squares_XX), dtype=torch.bool, device=squares_XX.device)
    total = squares_XX[off_diagonal].sum()
    return float((variances_XX[off_diagonal].sum() / total).clamp(0, 1)) if total > 0 else 0.0


register(
    Method("gaussian-prompt", adapt, "drawn from a Gaussian fitted to the few-shot prompts", label="Gaussian prompts"),
    place=50,
)
