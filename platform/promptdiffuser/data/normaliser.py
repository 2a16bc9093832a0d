"""Statistics of the training tasks; saved with every model, because inference needs the same ones.

The published code pools training *and test* data for its state statistics (mxu34/prompt-dt pdt_main.py,
`average_state_mean`); here they come from training tasks only, so nothing of a test task leaks.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from promptdiffuser.data.episodes import Episodes

STD_FLOOR = 1e-6
"""Added to every deviation (pdt_main.py)."""


@dataclass(frozen=True)
class Normaliser:
    """Maps environment units to what the networks see, and bounds what a generated prompt may hold."""

    state_mean: Tensor
    """(S,)"""
    state_std: Tensor
    """(S,)"""
    state_low: Tensor
    """(S,) lowest normalised state of the training tasks."""
    state_high: Tensor
    """(S,)"""
    reward_mean: Tensor
    """()"""
    reward_std: Tensor
    """()"""
    reward_low: Tensor
    """() lowest normalised reward of the training tasks."""
    reward_high: Tensor
    """()"""
    return_scale: Tensor
    """() returns-to-go are divided by it."""

    @staticmethod
    def fit(episodes: Episodes, return_scale: float) -> "Normaliser":
        """Compute the statistics over every valid step of the episodes, in float64."""
        steps = torch.arange(episodes.rewards.shape[1])[None] < torch.from_numpy(episodes.lengths)[:, None]
        states = torch.from_numpy(episodes.observations)[steps].double()
        rewards = torch.from_numpy(episodes.rewards)[steps].double()
        state_mean, state_std = states.mean(0), states.std(0, correction=0) + STD_FLOOR
        reward_mean, reward_std = rewards.mean(), rewards.std(correction=0) + STD_FLOOR
        normal_states, normal_rewards = (states - state_mean) / state_std, (rewards - reward_mean) / reward_std
        statistics = {
            "state_mean": state_mean,
            "state_std": state_std,
            "state_low": normal_states.amin(0),
            "state_high": normal_states.amax(0),
            "reward_mean": reward_mean,
            "reward_std": reward_std,
            "reward_low": normal_rewards.amin(),
            "reward_high": normal_rewards.amax(),
            "return_scale": torch.tensor(return_scale),
        }
        return Normaliser(**{name: value.float() for name, value in statistics.items()})

    def states(self, observations: Tensor) -> Tensor:
        """Normalise observations (..., S)."""
        return (observations - self.state_mean) / self.state_std

    def rewards(self, rewards: Tensor) -> Tensor:
        """Standardise rewards (...)."""
        return (rewards - self.reward_mean) / self.reward_std

    def tensors(self) -> dict[str, Tensor]:
        """Return the statistics by name, for a safetensors file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
