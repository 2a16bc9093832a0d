"""The space prompts are diffused in: x0 = the flattened (state, action, reward) of K* steps (paper, Eq. 3).

The prompt handed to the backbone has returns-to-go and timesteps instead of rewards (Eq. 1); they are not generated but
conditioned on: y = (returns-to-go, timesteps), so a prompt is assembled from generated states and actions and from y.
Rewards are generated and kept for inspection.

Axes: B rows, P prompt steps, S state, A action, X = P (S + A + 1), Y = 2 P.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.windows import Segments


@dataclass(frozen=True)
class PromptSpace:
    """Translates between prompts and the diffusion model's vectors."""

    low: Tensor
    """(X,) lowest value of each feature in the training data (-1 for actions)."""
    high: Tensor
    """(X,)"""
    return_mean: Tensor
    """(P,) mean scaled return-to-go of the training prompts at each step."""
    return_std: Tensor
    """(P,)"""
    action_dim: int
    horizon: int

    @staticmethod
    def fit(normaliser: Normaliser, prompts: Segments, horizon: int) -> "PromptSpace":
        """Take the bounds from the normaliser and the condition's statistics from the training prompts.

        All of them are put where the prompts are; a normaliser stays on the CPU, where data are read.
        Returns-to-go are standardised because raw ones are about 0.02 and would carry nothing into the network.
        """
        num_steps, action_dim = prompts.actions.shape[1:]
        ones = normaliser.state_low.new_ones(action_dim)
        low = torch.cat([normaliser.state_low, -ones, normaliser.reward_low[None]]).repeat(num_steps)
        high = torch.cat([normaliser.state_high, ones, normaliser.reward_high[None]]).repeat(num_steps)
        std = prompts.returns_to_go.std(0, correction=0).clamp_min(1e-6)
        device = prompts.states.device
        return PromptSpace(low.to(device), high.to(device), prompts.returns_to_go.mean(0), std, action_dim, horizon)

    @property
    def prompt_shape(self) -> tuple[int, int]:
        """Steps P of a prompt and features of a step."""
        num_steps = len(self.return_mean)
        return num_steps, len(self.low) // num_steps

    @property
    def condition_features(self) -> int:
        """Numbers Y in a condition."""
        return 2 * len(self.return_mean)

    @staticmethod
    def encode(prompts: Segments) -> Tensor:
        """Return x0 (B, X)."""
        return torch.cat([prompts.states, prompts.actions, prompts.rewards[..., None]], dim=-1).flatten(1)

    def condition(self, prompts: Segments) -> Tensor:
        """Return y (B, Y): standardised returns-to-go, then timesteps as fractions of the horizon."""
        returns = (prompts.returns_to_go - self.return_mean) / self.return_std
        return torch.cat([returns, prompts.timesteps / self.horizon], dim=-1)

    def decode(self, x_BX: Tensor, conditions: Segments) -> Segments:
        """Assemble prompts from generated vectors and the returns-to-go and timesteps they were conditioned on."""
        steps = x_BX.unflatten(1, (conditions.timesteps.shape[1], -1))
        return Segments(
            returns_to_go=conditions.returns_to_go,
            states=steps[..., : -self.action_dim - 1],
            actions=steps[..., -self.action_dim - 1 : -1],
            rewards=steps[..., -1],
            timesteps=conditions.timesteps,
            valid=conditions.valid,
        )
