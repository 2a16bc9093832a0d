"""The policies that make data: learned experts, scripted experts, and random actions.

A learned expert is a small tanh network shipped as safetensors + JSON; `jobs/experts.py` trains it with
stable-baselines3, loading and running it needs numpy alone. Axes: B episodes, S observation, F features, A action.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from promptdiffuser.errors import UserError
from promptdiffuser.tasks.family import Controller, Floats, LearnedExpert, ScriptedExpert, TaskFamily

FEATURE_CLIP = 10.0
"""Normalised features are clipped to this many standard deviations (stable-baselines3 VecNormalize, `clip_obs`)."""

Quality = Literal["expert", "medium", "random", "mixed"]
QUALITIES: dict[Quality, str] = {
    "expert": "the best checkpoint of the expert's training by mean return over all tasks; the scripted policy with "
    "Gaussian noise of deviation 0.05 on its actions",
    "medium": "the first checkpoint at least half of the way from the random policy's mean return to the expert's; the "
    "noisy scripted policy with the smallest share of uniformly random actions, in tenths, that brings the mean return "
    "to half of the way or below",
    "random": "uniformly random actions",
    "mixed": "seven episodes of ten by the medium policy, then three by the expert (the proportion of Meta-DT)",
}
"""How the episodes of each quality are made."""
MIXED_MEDIUM_SHARE = 0.7
SCRIPT_NOISE = 0.05
"""Deviation of the noise on scripted actions: without it all episodes of a task would be one and the same."""


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


@dataclass(frozen=True)
class ConstantPolicy:
    """A batch policy that takes the same action at every step of every task."""

    action: tuple[float, ...]
    """(A,) in the environment's units."""

    def begin(self, num_rows: int) -> None:
        """Nothing to make room for."""

    def start(self, rows: NDArray[np.intp], requests: Sequence["SeededEpisode"]) -> None:
        """Nothing differs between episodes."""

    def act(self, observations_BS: Floats) -> Floats:
        """Return the action for each row (B, A)."""
        return np.tile(np.array(self.action, np.float32), (len(observations_BS), 1))

    def observe(self, rewards_B: Floats) -> None:
        """Ignore the rewards."""

    def keep(self, rows: NDArray[np.intp]) -> None:
        """Nothing to drop."""


Demonstrator = ExpertNetwork | ConstantPolicy | float
"""What makes a policy, besides the family: a network, one action, or the share of random actions in a script."""


def shipped_demonstrator(family: TaskFamily, quality: Quality) -> Demonstrator:
    """Load what is shipped for quality expert or medium; raises `UserError` naming the job that makes it."""
    if isinstance(family.expert, LearnedExpert):
        return ExpertNetwork.load(shipped_file(family, quality, "safetensors"))
    share: float = json.loads(shipped_file(family, quality, "json").read_text())["random_share"]
    return share


def shipped_file(family: TaskFamily, quality: Quality, suffix: str) -> Path:
    """Return the path of a shipped expert's file; raises `UserError` naming the job that makes one."""
    name = family.expert_of or family.name
    path = Path(str(resources.files("promptdiffuser.tasks"))) / "expert_weights" / f"{name}-{quality}.{suffix}"
    if not path.is_file():
        raise UserError(f"no {quality} policy is shipped for {name}; make one with `python jobs/experts.py {name}`")
    return path


def demonstrators(family: TaskFamily, quality: Quality) -> dict[Quality, Demonstrator]:
    """Return everything that episodes of a quality are made with."""
    needed: dict[Quality, tuple[Quality, ...]] = {"random": (), "mixed": ("medium", "expert")}
    return {name: shipped_demonstrator(family, name) for name in needed.get(quality, (quality,))}


def policy_of(
    family: TaskFamily, demonstrator: Demonstrator | None
) -> "NetworkPolicy | ConstantPolicy | ScriptedPolicy | RandomPolicy":
    """Return a batch policy, of random actions if there is no demonstrator.

    The seed of each episode addresses what is random in it.
    """
    if demonstrator is None:
        return RandomPolicy(family)
    if isinstance(demonstrator, ExpertNetwork):
        return NetworkPolicy(family, demonstrator)
    if isinstance(demonstrator, ConstantPolicy):
        return demonstrator
    return ScriptedPolicy(family, demonstrator)


class SeededEpisode(Protocol):
    """What a demonstrator must know of an episode."""

    @property
    def task(self) -> int:
        """Task id."""

    @property
    def seed(self) -> int:
        """Seed of the episode."""


class NetworkPolicy:
    """A learned expert as a batch policy: it is told each episode's goal."""

    def __init__(self, family: TaskFamily, network: ExpertNetwork) -> None:
        """Bind a network to the family whose features it reads."""
        assert isinstance(family.expert, LearnedExpert)
        self.family, self.network, self._expert = family, network, family.expert
        self._goal_BG: Floats = np.zeros((0, 0), np.float32)

    def begin(self, num_rows: int) -> None:
        """Make room for the goals."""
        self._goal_BG = np.zeros((num_rows, len(self.family.goal(self.family.tasks[0]))), np.float32)

    def start(self, rows: NDArray[np.intp], requests: Sequence[SeededEpisode]) -> None:
        """Look up the goals of the tasks."""
        self._goal_BG[rows] = [self.family.goal(request.task) for request in requests]

    def act(self, observations_BS: Floats) -> Floats:
        """Return deterministic actions (B, A)."""
        output_BA = self.network(self._expert.features(observations_BS, self._goal_BG))
        return self._expert.actions(output_BA, self._goal_BG)

    def observe(self, rewards_B: Floats) -> None:
        """Ignore the rewards: the expert has no memory."""

    def keep(self, rows: NDArray[np.intp]) -> None:
        """Drop all other rows."""
        self._goal_BG = self._goal_BG[rows]


class ScriptedPolicy:
    """A family's hand-written controllers with noise, some actions replaced by uniformly random ones.

    Each episode has its own stream of noise.
    """

    def __init__(self, family: TaskFamily, random_share: float) -> None:
        """Take the share of actions to replace."""
        assert isinstance(family.expert, ScriptedExpert)
        self.family, self.random_share, self._expert = family, random_share, family.expert
        self._scripts: list[_Script] = []

    def begin(self, num_rows: int) -> None:
        """Forget all episodes."""
        self._scripts = []

    def start(self, rows: NDArray[np.intp], requests: Sequence[SeededEpisode]) -> None:
        """Make a controller an episode and draw its noise."""
        shape = (self.family.horizon, self.family.action_dim)
        for row, request in zip(rows, requests, strict=True):
            stream = np.random.default_rng(request.seed)
            script = _Script(
                self._expert.controller(request.task),
                np.array(self.family.goal(request.task), np.float32),
                stream.normal(0.0, SCRIPT_NOISE, shape),
                stream.uniform(-1.0, 1.0, shape),
                stream.random(shape[0]) < self.random_share,
            )
            self._scripts[row : row + 1] = [script]  # One more where the row is new.

    def act(self, observations_BS: Floats) -> Floats:
        """Return the next actions (B, A)."""
        seen_BS = self._expert.reveal(observations_BS, np.array([script.goal_G for script in self._scripts]))
        return np.array([script.act(seen) for script, seen in zip(self._scripts, seen_BS, strict=True)], np.float32)

    def observe(self, rewards_B: Floats) -> None:
        """Ignore the rewards."""

    def keep(self, rows: NDArray[np.intp]) -> None:
        """Drop all other rows."""
        self._scripts = [self._scripts[row] for row in rows]


@dataclass
class _Script:
    """One episode of a scripted policy."""

    controller: Controller
    goal_G: Floats
    noise_TA: NDArray[np.float64]
    random_TA: NDArray[np.float64]
    replaced_T: NDArray[np.bool_]
    step: int = 0

    def act(self, seen: NDArray[np.float64]) -> NDArray[np.float64]:
        # The controller is asked even where its action is replaced: it may have a memory.
        scripted_A = np.clip(self.controller(seen), -1.0, 1.0) + self.noise_TA[self.step]
        action_A: NDArray[np.float64] = self.random_TA[self.step] if self.replaced_T[self.step] else scripted_A
        self.step += 1
        return action_A


class RandomPolicy:
    """Uniform actions, the lower reference of normalised scores; each episode has its own stream of actions."""

    def __init__(self, family: TaskFamily) -> None:
        """Take the family whose actions are drawn."""
        self.family = family
        self._actions_BTA: Floats = np.zeros((0, 0, 0), np.float32)
        self._step_B: NDArray[np.int64] = np.zeros(0, np.int64)

    def begin(self, num_rows: int) -> None:
        """Make room for every episode's actions."""
        self._actions_BTA = np.zeros((num_rows, self.family.horizon, self.family.action_dim), np.float32)
        self._step_B = np.zeros(num_rows, np.int64)

    def start(self, rows: NDArray[np.intp], requests: Sequence[SeededEpisode]) -> None:
        """Draw the episodes' actions."""
        shape = (self.family.horizon, self.family.action_dim)
        self._actions_BTA[rows] = [np.random.default_rng(r.seed).uniform(-1.0, 1.0, shape) for r in requests]
        self._step_B[rows] = 0

    def act(self, observations_BS: Floats) -> Floats:
        """Return the next drawn actions (B, A)."""
        actions_BA: Floats = self._actions_BTA[np.arange(len(self._step_B)), self._step_B]
        self._step_B += 1
        return actions_BA

    def observe(self, rewards_B: Floats) -> None:
        """Ignore the rewards."""

    def keep(self, rows: NDArray[np.intp]) -> None:
        """Drop all other rows."""
        self._actions_BTA, self._step_B = self._actions_BTA[rows], self._step_B[rows]
