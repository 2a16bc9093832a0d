"""The denoiser: noised prompt, noise level and condition in, predicted noise out.

The network is the one of Diffusion-QL (Zhendong-Wang/Diffusion-Policies-for-Offline-RL, agents/model.py), which the
paper's "MLP-based" noise network and small number of steps point to: sinusoidal embedding 16 -> 32 -> Mish -> 16, then
three hidden layers of 256 with Mish. x0 is the flattened prompt, so that steps can correlate; the paper does not say
whether it is flattened or treated step by step.

Axes: B rows, X features of a flattened prompt, Y features of the condition, M context transitions, F their features.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class DenoiserConfig:
    """Size of the denoiser."""

    hidden: int = 256
    """Width of the hidden layers."""
    depth: int = 3
    """Hidden layers."""
    time_features: int = 16
    """Features of the embedded noise level; even."""
    context_features: int = 32
    """Features of the task context; used by variants that see one."""
    context_hidden: int = 64
    """Width of the task context's encoder."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        for name in ("hidden", "depth", "time_features", "context_features", "context_hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"denoiser.{name} must be at least 1, got {getattr(self, name)}")
        if self.time_features % 2:
            raise ValueError(f"denoiser.time_features must be even, got {self.time_features}")


class NoiseLevelEmbedding(nn.Module):
    """Sinusoidal embedding of the denoising step, then two linear layers."""

    frequencies: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        half = features // 2
        frequencies = torch.exp(torch.arange(half) * (-math.log(10_000.0) / max(half - 1, 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.network = nn.Sequential(nn.Linear(features, 2 * features), nn.Mish(), nn.Linear(2 * features, features))

    def forward(self, step_B: Tensor) -> Tensor:
        """Return (B, features)."""
        angles = step_B[:, None].float() * self.frequencies
        embedded: Tensor = self.network(torch.cat([angles.sin(), angles.cos()], dim=-1))
        return embedded


class ContextEncoder(nn.Module):
    """Permutation-invariant encoder of few-shot transitions: an MLP on each, the mean, then a linear layer."""

    def __init__(self, transition_features: int, config: DenoiserConfig) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(transition_features, config.context_hidden),
            nn.ReLU(),
            nn.Linear(config.context_hidden, config.context_hidden),
            nn.ReLU(),
        )
        self.output = nn.Linear(config.context_hidden, config.context_features)

    def forward(self, transitions_BMF: Tensor) -> Tensor:
        """Return (B, context features)."""
        encoded: Tensor = self.output(self.network(transitions_BMF).mean(dim=1))
        return encoded


class Denoiser(nn.Module):
    """Predicts the noise in a flattened prompt from the condition y and, if built so, a task context."""

    def __init__(
        self, config: DenoiserConfig, prompt_features: int, condition_features: int, transition_features: int
    ) -> None:
        """Build the network; `transition_features` of 0 builds the published variant without a task context."""
        super().__init__()
        self.embed_level = NoiseLevelEmbedding(config.time_features)
        self.encode_context = ContextEncoder(transition_features, config) if transition_features else None
        inputs = prompt_features + config.time_features + condition_features
        inputs += config.context_features if transition_features else 0
        layers: list[nn.Module] = []
        for _ in range(config.depth):
            layers += [nn.Linear(inputs, config.hidden), nn.Mish()]
            inputs = config.hidden
        self.network = nn.Sequential(*layers, nn.Linear(inputs, prompt_features))

    def condition(self, y_BY: Tensor, transitions_BMF: Tensor) -> Tensor:
        """Join y and the encoded context; computed once a prompt, not once a denoising step."""
        if self.encode_context is None:
            return y_BY
        return torch.cat([y_BY, self.encode_context(transitions_BMF)], dim=-1)

    def forward(self, noised_BX: Tensor, step_B: Tensor, condition_BC: Tensor) -> Tensor:
        """Return the predicted noise (B, X)."""
        predicted: Tensor = self.network(torch.cat([noised_BX, self.embed_level(step_B), condition_BC], dim=-1))
        return predicted
