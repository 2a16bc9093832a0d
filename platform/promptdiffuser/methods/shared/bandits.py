"""Bandits over prompt segments: which arm goes into each slot of a prompt, learned from returns alone.

Rietz et al. (arXiv 2502.04979): the reward of a prompt is the sum of what its slots contribute, each by a network of
its own over the features of the segment in it. The public code (sarakarimi/prompt-dt at 3e91b05,
prompt_dt/prompt_tuning_bandit.py) fits networks of two hidden layers of 16 by 1,000 full-batch SGD steps of 0.01 from
the initial weights in every round. How uncertain a prediction is, which Thompson sampling and UCB need, is not said in
what is known of the paper; here the last layer is a Bayesian linear regression on the hidden features of all slots
(Riquelme, Tucker and Snoek 2018, "NeuralLinear"), with a standard normal prior and the network's mean squared residual
as noise.

Axes: J slots, N arms, F features of an arm, H hidden features, R episodes played, Q episodes of one round,
W = J H + 1 weights of the last layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from promptdiffuser.data.plans import Address
from promptdiffuser.rng import numpy_generator, torch_generator
from promptdiffuser.training.engine import FlatParameters

HIDDEN = 16
FIT_LEARNING_RATE, FIT_CLIP_NORM = 0.01, 10.0
EXPLORING = 0.2
"""Share of the rounds in which the greedy strategy's random choices fall from always to never."""
LEAST_VARIANCE = 1e-2
"""Of the noise, as a share of the variance of returns: a network fits few of them exactly."""

Strategy = Literal["thompson", "ucb", "greedy"]
Play = Callable[[NDArray[np.int64], int], NDArray[np.float64]]
"""(arms (Q, J), number of the first episode) -> returns (Q,), NaN for an episode without one."""


@dataclass(frozen=True)
class BanditConfig:
    """A bandit's budget and its reward model."""

    episodes: int = 250
    """Episodes played in the target task (250 in the public code)."""
    at_a_time: int = 15
    """Episodes of a round, after which the reward model is fitted again (1 in the public code)."""
    slots: int = 1
    """Segments of a prompt; must divide the backbone's prompt length."""
    confidence: float = 1.0
    """Deviations that UCB adds to the mean."""
    fit_steps: int = 300
    """Steps that the reward model is fitted by in every round (1,000 in the public code)."""

    def __post_init__(self) -> None:
        """Refuse bandits that never play."""
        for name in ("episodes", "at_a_time", "slots", "fit_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.confidence < 0:
            raise ValueError(f"confidence must not be negative, got {self.confidence}")


class RewardModel(nn.Module):
    """The sum of one network a slot, each with two hidden layers."""

    def __init__(self, num_slots: int, num_features: int, *address: int | str) -> None:
        """Draw the initial weights at an address."""
        super().__init__()
        generator = torch_generator(*address)

        def drawn(num_in: int, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(num_slots, *shape, generator=generator) * num_in**-0.5)

        self.first, self.first_bias = drawn(num_features, num_features, HIDDEN), drawn(num_features, HIDDEN)
        self.second, self.second_bias = drawn(HIDDEN, HIDDEN, HIDDEN), drawn(HIDDEN, HIDDEN)
        self.last, self.last_bias = drawn(HIDDEN, HIDDEN), nn.Parameter(torch.zeros(()))

    def hidden(self, features_RJF: Tensor) -> Tensor:
        """Return the last hidden features (R, J, H) of the segments in every slot."""
        first = torch.relu(torch.einsum("rjf,jfh->rjh", features_RJF, self.first) + self.first_bias)
        return torch.relu(torch.einsum("rjf,jfh->rjh", first, self.second) + self.second_bias)

    def forward(self, features_RJF: Tensor) -> Tensor:
        """Return predicted returns (R,)."""
        return (self.hidden(features_RJF) * self.last).sum((1, 2)) + self.last_bias

    def fit(self, features_RJF: Tensor, returns_R: Tensor, steps: int) -> float:
        """Descend the mean squared error and return what is left of it."""
        parameters = FlatParameters(self)
        for _ in range(steps):
            gradient = parameters.gradient((self(features_RJF) - returns_R).square().mean())
            parameters.vector -= (
                FIT_LEARNING_RATE * gradient * (FIT_CLIP_NORM / gradient.norm().clamp_min(FIT_CLIP_NORM))
            )
        with torch.no_grad():
            return float((self(features_RJF) - returns_R).square().mean())


class Posterior:
    """What is known of the last layer's weights after some episodes."""

    def __init__(self, model: RewardModel, features_NF: Tensor, arms_RJ: Tensor, returns_R: Tensor, steps: int) -> None:
        """Fit the model to the returns that arms had."""
        num_slots = arms_RJ.shape[1]
        standard_R = (returns_R - returns_R.mean()) / returns_R.std(correction=0).clamp_min(1e-6)
        residual = model.fit(features_NF[arms_RJ], standard_R, steps)
        with torch.no_grad():
            self.hidden_NJH = model.hidden(features_NF[:, None].expand(-1, num_slots, -1))
        played_RJH = self.hidden_NJH[arms_RJ, torch.arange(num_slots)]
        played_RW = torch.cat([played_RJH.flatten(1), torch.ones(len(played_RJH), 1)], dim=1).double()
        noise = max(residual, LEAST_VARIANCE)
        precision_WW = torch.eye(played_RW.shape[1], dtype=torch.float64) + played_RW.T @ played_RW / noise
        self.covariance_WW = torch.linalg.inv(precision_WW)
        self.mean_W = self.covariance_WW @ played_RW.T @ standard_R.double() / noise

    def contributions(self, weights_W: Tensor) -> Tensor:
        """Return what each arm contributes in each slot (N, J) by weights of the last layer."""
        weights_JH = weights_W[:-1].view(self.hidden_NJH.shape[1:])
        return (self.hidden_NJH.double() * weights_JH).sum(2)

    def deviations(self) -> Tensor:
        """Return the standard deviation (N, J) of each arm's contribution in each slot."""
        num_slots, num_hidden = self.hidden_NJH.shape[1:]
        blocks = self.covariance_WW[:-1, :-1].view(num_slots, num_hidden, num_slots, num_hidden)
        own_JHH = blocks[torch.arange(num_slots), :, torch.arange(num_slots)]
        hidden = self.hidden_NJH.double()
        return torch.einsum("njh,jhi,nji->nj", hidden, own_JHH, hidden).clamp_min(0).sqrt()

    def sampled(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """Return weights (W,) drawn from what is believed of them."""
        root_WW = torch.linalg.cholesky(self.covariance_WW)
        drawn = torch.randn(count, len(self.mean_W), generator=generator, dtype=torch.float64)
        return [self.mean_W + root_WW @ one_W for one_W in drawn]


def play_bandit(
    play: Play, features_NF: Tensor, strategy: Strategy, config: BanditConfig, address: Address
) -> NDArray[np.int64]:
    """Play rounds, and return the arm of each slot (J,) of what is predicted best among all that was played.

    The first round plays random arms. In a round of several episodes Thompson sampling draws weights for each; UCB and
    the greedy strategy take the best arms of every slot, the second best for the second episode and so on.

    Raises:
        RuntimeError: No episode had a return.
    """
    num_arms = len(features_NF)
    spread_F = features_NF.std(0, correction=0)
    features_NF = (features_NF - features_NF.mean(0)) / torch.where(spread_F > 1e-6, spread_F, 1.0)
    arms_RJ, returns_R = np.empty((0, config.slots), np.int64), np.empty(0)

    def posterior() -> Posterior:
        has_return = np.isfinite(returns_R)
        if not has_return.any():
            raise RuntimeError("the simulator lost the state in every episode of the bandit: there is nothing to learn")
        played, found = torch.from_numpy(arms_RJ[has_return]), torch.from_numpy(returns_R[has_return]).float()
        model = RewardModel(config.slots, features_NF.shape[1], *address, "model")
        return Posterior(model, features_NF, played, found, config.fit_steps)

    while len(arms_RJ) < config.episodes:
        num_played = len(arms_RJ)
        count = min(config.at_a_time, config.episodes - num_played)
        generator = numpy_generator(*address, "arms", num_played)
        arms_QJ = generator.integers(0, num_arms, (count, config.slots))
        if num_played:
            explores_Q = np.zeros(count, bool)
            if strategy == "greedy":
                explores_Q = generator.random(count) < 1 - num_played / (EXPLORING * config.episodes)
            chosen_QJ = _chosen(posterior(), strategy, count, config, (*address, "weights", num_played))
            arms_QJ = np.where(explores_Q[:, None], arms_QJ, chosen_QJ)
        arms_RJ, returns_R = (
            np.concatenate([arms_RJ, arms_QJ]),
            np.concatenate([returns_R, play(arms_QJ, num_played)]),
        )
    known = posterior()
    contributions_NJ = known.contributions(known.mean_W).numpy()
    predicted_R = contributions_NJ[arms_RJ, np.arange(config.slots)].sum(axis=1)
    best: NDArray[np.int64] = arms_RJ[predicted_R.argmax()]
    return best


def _chosen(
    known: Posterior, strategy: Strategy, count: int, config: BanditConfig, address: Address
) -> NDArray[np.int64]:
    """Return the arms (Q, J) of a round."""
    if strategy == "thompson":
        weights = known.sampled(count, torch_generator(*address))
        best_QJ = torch.stack([known.contributions(weights_W).argmax(0) for weights_W in weights])
    else:
        values_NJ = known.contributions(known.mean_W)
        if strategy == "ucb":
            values_NJ = values_NJ + config.confidence * known.deviations()
        best_QJ = values_NJ.argsort(dim=0, descending=True, stable=True)[torch.arange(count) % len(values_NJ)]
    arms_QJ: NDArray[np.int64] = best_QJ.numpy()
    return arms_QJ


def num_parameters(num_slots: int, num_features: int) -> int:
    """Return the parameters of the reward model."""
    return num_slots * ((num_features + 1) * HIDDEN + (HIDDEN + 1) * HIDDEN + HIDDEN) + 1
