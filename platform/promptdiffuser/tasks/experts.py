"""Task-conditioned experts: small tanh networks shipped as safetensors + JSON.

`jobs/experts.py` trains them with stable-baselines3; loading and running them needs numpy alone.
Axes: B episodes, S observation, F expert features, A action.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from promptdiffuser.errors import UserError
from promptdiffuser.tasks.family import Floats, TaskFamily

FEATURE_CLIP = 10.0
"""Normalised features are clipped to this many standard deviations (stable-baselines3 VecNormalize, `clip_obs`)."""


@dataclass(frozen=True)
class ExpertNetwork:
    """Normalisation of the features and a tanh network for the mean action."""

    feature_mean: Floats
    feature_std: Floats
    weights: tuple[Floats, ...]
    """One (in, out) matrix a layer."""
    biases: tuple[Floats, ...]

    def __call__(self, features_BF: Floats) -> Floats:
        """Return the deterministic actions (B, A), unclipped."""
        hidden = np.clip((features_BF - self.feature_mean) / self.feature_std, -FEATURE_CLIP, FEATURE_CLIP)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = np.tanh(hidden @ weight + bias)
        actions: Floats = (hidden @ self.weights[-1] + self.biases[-1]).astype(np.float32)
        return actions

    def save(self, folder: Path, name: str, record: dict[str, Any]) -> None:
        """Write `name`.safetensors and `name`.json (how the network was made and what it returns)."""
        tensors = {"feature_mean": self.feature_mean, "feature_std": self.feature_std}
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            tensors |= {f"weight_{layer}": weight, f"bias_{layer}": bias}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {key: np.ascontiguousarray(value, np.float32) for key, value in tensors.items()},
            folder / f"{name}.safetensors",
        )
        (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> "ExpertNetwork":
        """Read a network written by `save`."""
        tensors = load_file(path)
        layers = range(sum(key.startswith("weight_") for key in tensors))
        return ExpertNetwork(
            feature_mean=tensors["feature_mean"],
            feature_std=tensors["feature_std"],
            weights=tuple(tensors[f"weight_{layer}"] for layer in layers),
            biases=tuple(tensors[f"bias_{layer}"] for layer in layers),
        )


def shipped_weights(family: str, quality: str) -> Path:
    """Return the path of a shipped expert; raises `UserError` naming the job that makes one."""
    path = Path(str(resources.files("promptdiffuser.tasks"))) / "expert_weights" / f"{family}-{quality}.safetensors"
    if not path.is_file():
        raise UserError(
            f"no {quality} policy is shipped for {family}; train one with `python jobs/experts.py --family {family}`"
        )
    return path


class ExpertPolicy:
    """A shipped expert as a batch policy: it is told each episode's goal."""

    def __init__(self, family: TaskFamily, network: ExpertNetwork) -> None:
        """Bind a network to the family whose features it reads."""
        self.family, self.network = family, network
        self._goal_B: Floats = np.zeros(0, np.float32)

    def begin(self, tasks: Sequence[int]) -> None:
        """Look up the goals of the tasks."""
        self._goal_B = np.array([self.family.goal(task) for task in tasks], np.float32)

    def act(self, observations_BS: Floats) -> Floats:
        """Return deterministic actions (B, A)."""
        return self.network(self.family.expert_features(observations_BS, self._goal_B))

    def observe(self, rewards_B: Floats) -> None:
        """Ignore the rewards: the expert has no memory."""


class RandomPolicy:
    """Uniform actions, the lower reference of normalised scores; each episode has its own stream of actions."""

    def __init__(self, family: TaskFamily, seeds: Sequence[int]) -> None:
        """Take one seed an episode."""
        self.family, self.seeds = family, seeds
        self._actions_TBA: Floats = np.zeros(0, np.float32)
        self._step = 0

    def begin(self, tasks: Sequence[int]) -> None:
        """Draw every episode's actions."""
        shape = (self.family.horizon, self.family.action_dim)
        streams = [np.random.default_rng(seed).uniform(-1.0, 1.0, shape) for seed in self.seeds]
        self._actions_TBA = np.stack(streams, axis=1).astype(np.float32)
        self._step = 0

    def act(self, observations_BS: Floats) -> Floats:
        """Return the next drawn actions (B, A)."""
        self._step += 1
        actions_BA: Floats = self._actions_TBA[self._step - 1]
        return actions_BA

    def observe(self, rewards_B: Floats) -> None:
        """Ignore the rewards."""
