"""The denoiser: noised prompt, noise level and condition in, prediction out.

The default network is the one of Diffusion-QL (Zhendong-Wang/Diffusion-Policies-for-Offline-RL, agents/model.py), which
the paper's "MLP-based" noise network and small number of steps point to: sinusoidal embedding 16 -> 32 -> Mish -> 16,
then three hidden layers of 256 with Mish. It reads the flattened prompt, so that steps can correlate; the paper does
not say whether it is flattened or treated step by step. The transformer, with a token a step, is an alternative.

Classifier-free guidance (Ho & Salimans 2022): a share of the training is without the condition, and generation goes
from the prediction without it beyond the one with it. The absent condition is zeros, as in Decision Diffuser and
CleanDiffuser (no real condition is, as its timesteps are not all 0), or learned, as the label that stands for none in
DiT (Peebles & Xie 2023; facebookresearch/DiT, models.py `LabelEmbedder`).

Axes: B rows, P prompt steps, S features of a step, X = P S features of a flattened prompt, Y features of the condition,
M context transitions, F their features, C features of the condition with the context, E of the noise level and C.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from promptdiffuser.registry import Registry


@dataclass(frozen=True)
class DenoiserConfig:
    """Network of the denoiser, its size, and its classifier-free guidance."""

    architecture: str = "mlp"
    """mlp reads the flattened prompt, transformer a token a step; a transformer does with `hidden` 64 or 128."""
    hidden: int = 256
    """Width of the hidden layers."""
    depth: int = 3
    """Hidden layers."""
    heads: int = 4
    """Attention heads of the transformer; they divide `hidden`."""
    time_features: int = 16
    """Features of the embedded noise level; even."""
    sees_returns_and_times: bool = True
    """Whether the condition holds y = (returns-to-go, timesteps); the prompt is assembled with them either way."""
    context: Literal["transitions", "goal"] = "transitions"
    """What variants with a task context see: transitions of the few-shot episodes, or the numbers that define the task.
    The goal is an upper bound and no method: at test time nobody tells it."""
    context_features: int = 32
    """Features of the task context; used by variants that see one."""
    context_hidden: int = 64
    """Width of the task context's encoder."""
    condition_dropout: float = 0.0
    """Probability that a prompt in the denoising loss is shown without its condition; Decision Diffuser has 0.25."""
    null_condition: Literal["zeros", "learned"] = "zeros"
    """What stands for an absent condition: zeros, or numbers that are learned with the network and start as zeros."""
    condition_weight: float = 1.0
    """Weight w of classifier-free guidance: generation follows absent + w (conditional - absent). 1 is no guidance and
    costs one evaluation instead of two, 0 ignores the condition; Decision Diffuser has 1.2."""

    def __post_init__(self) -> None:
        """Refuse unknown networks, sizes that cannot be built, and guidance away from what was never trained."""
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"denoiser.architecture {self.architecture!r} is unknown; {ARCHITECTURES.suggest(self.architecture)}"
            )
        for name in ("hidden", "depth", "heads", "time_features", "context_features", "context_hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"denoiser.{name} must be at least 1, got {getattr(self, name)}")
        if self.time_features % 2:
            raise ValueError(f"denoiser.time_features must be even, got {self.time_features}")
        if self.architecture == "transformer" and self.hidden % self.heads:
            raise ValueError(f"denoiser.heads must divide denoiser.hidden ({self.hidden}), got {self.heads}")
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"denoiser.condition_dropout must be at least 0 and below 1, got {self.condition_dropout}")
        if not 0 <= self.condition_weight < math.inf:
            raise ValueError(
                f"denoiser.condition_weight must not be negative and must be finite, got {self.condition_weight}"
            )
        if self.null_condition not in ("zeros", "learned"):
            raise ValueError(f"denoiser.null_condition must be zeros or learned, got {self.null_condition!r}")
        if self.null_condition == "learned" and self.condition_dropout == 0:
            raise ValueError(
                "denoiser.null_condition learned needs a denoiser.condition_dropout above 0, such as 0.25: without it "
                "no prompt is shown without its condition, and there is nothing to learn it from"
            )
        if self.condition_weight != 1 and self.condition_dropout == 0:
            raise ValueError(
                f"denoiser.condition_weight {self.condition_weight} needs a denoiser.condition_dropout above 0, such "
                "as 0.25: without it the prediction that guidance starts from is not trained"
            )


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
    """Permutation-invariant encoder of few-shot transitions: an MLP on each, the mean, then a linear layer.

    A task's goal is read as a single transition.
    """

    def __init__(self, transition_features: int, hidden: int, features: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(transition_features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.output = nn.Linear(hidden, features)

    def forward(self, transitions_BMF: Tensor) -> Tensor:
        """Return (B, context features)."""
        encoded: Tensor = self.output(self.network(transitions_BMF).mean(dim=1))
        return encoded


PromptShape = tuple[int, int]
"""(steps P, features of a step S)."""


def mlp(config: DenoiserConfig, shape: PromptShape, level_and_condition: int) -> nn.Sequential:
    """Return hidden layers of equal width over everything."""
    inputs, outputs = math.prod(shape) + level_and_condition, math.prod(shape)
    layers: list[nn.Module] = []
    for _ in range(config.depth):
        layers += [nn.Linear(inputs, config.hidden), nn.Mish()]
        inputs = config.hidden
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class StepTransformer(nn.Module):
    """Every prompt step is a token and attends to all; noise level and condition are added to each.

    Blocks are normalised first, without dropout, with four times the width between their two layers.
    """

    def __init__(self, config: DenoiserConfig, shape: PromptShape, level_and_condition: int) -> None:
        super().__init__()
        self.shape = shape
        self.embed_step = nn.Linear(shape[1], config.hidden)
        self.embed_rest = nn.Linear(level_and_condition, config.hidden)
        self.positions = nn.Parameter(0.02 * torch.randn(shape[0], config.hidden))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    config.hidden, config.heads, 4 * config.hidden, 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(config.depth)
            )
        )
        self.output = nn.Sequential(nn.LayerNorm(config.hidden), nn.Linear(config.hidden, shape[1]))

    def forward(self, input_BI: Tensor) -> Tensor:
        """Return (B, X) for the joined (noised, level, condition) (B, X + E)."""
        noised_BX, rest_BE = input_BI.tensor_split([math.prod(self.shape)], dim=1)
        tokens = self.embed_step(noised_BX.unflatten(1, self.shape)) + self.embed_rest(rest_BE)[:, None]
        predicted: Tensor = self.output(self.blocks(tokens + self.positions)).flatten(1)
        return predicted


ARCHITECTURES: Registry[Callable[[DenoiserConfig, PromptShape, int], nn.Module]] = Registry(
    "denoiser", {"mlp": mlp, "transformer": StepTransformer}
)
"""(config, prompt shape, E) -> network from the joined (noised, level, condition) (B, X + E) to (B, X)."""


class Denoiser(nn.Module):
    """Predicts x0, noise or a mixture of a flattened prompt from the condition y and, if built so, a task context."""

    absent_C: Tensor
    """What stands for no condition."""

    def __init__(
        self, config: DenoiserConfig, prompt_shape: PromptShape, condition_features: int, transition_features: int
    ) -> None:
        """Build the network; `transition_features` of 0 builds the published variant without a task context."""
        super().__init__()
        self.config = config
        self.embed_level = NoiseLevelEmbedding(config.time_features)
        self.encode_context = (
            ContextEncoder(transition_features, config.context_hidden, config.context_features)
            if transition_features
            else None
        )
        num_condition = condition_features if config.sees_returns_and_times else 0
        num_condition += config.context_features if transition_features else 0
        self.network = ARCHITECTURES[config.architecture](config, prompt_shape, config.time_features + num_condition)
        if config.null_condition == "learned":
            self.absent_C = nn.Parameter(torch.zeros(num_condition))
        else:
            # Known without a file, and folders from before there was a choice have none.
            self.register_buffer("absent_C", torch.zeros(num_condition), persistent=False)

    def condition(self, y_BY: Tensor, transitions_BMF: Tensor) -> Tensor:
        """Join y and the encoded context; computed once a prompt, not once a denoising step."""
        seen_BY = y_BY if self.config.sees_returns_and_times else y_BY[:, :0]
        if self.encode_context is None:
            return seen_BY
        return torch.cat([seen_BY, self.encode_context(transitions_BMF)], dim=-1)

    def hidden_but(self, shown_B: Tensor, condition_BC: Tensor) -> Tensor:
        """Return the condition (B, C) with that of the rows where `shown_B` is False taken away."""
        return torch.where(shown_B[:, None], condition_BC, self.absent_C.to(condition_BC.dtype))

    def forward(self, noised_BX: Tensor, step_B: Tensor, condition_BC: Tensor) -> Tensor:
        """Return the prediction (B, X)."""
        predicted: Tensor = self.network(torch.cat([noised_BX, self.embed_level(step_B), condition_BC], dim=-1))
        return predicted

    def guided(self, noised_BX: Tensor, step_B: Tensor, condition_BC: Tensor) -> Tensor:
        """Return the prediction (B, X) with classifier-free guidance.

        It may be joined from predictions of noise, x0 or v alike: each is an affine function of the others.
        """
        if self.config.condition_weight == 1:
            conditional_BX: Tensor = self(noised_BX, step_B, condition_BC)
            return conditional_BX
        both_BC = torch.cat([condition_BC, self.absent_C.to(condition_BC.dtype).expand_as(condition_BC)])
        both_BX: Tensor = self(noised_BX.repeat(2, 1), step_B.repeat(2), both_BC)
        conditional_BX, absent_BX = both_BX.chunk(2)
        return absent_BX + self.config.condition_weight * (conditional_BX - absent_BX)
