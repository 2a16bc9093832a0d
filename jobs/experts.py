"""Train the task-conditioned expert of a family with PPO and ship it with a medium checkpoint.

    python jobs/experts.py --family cheetah-vel

Needs the extra `experts` (stable-baselines3). Checkpoints are kept by a fixed rule: every `evaluate_every` steps the
deterministic policy runs one seeded episode of every task; the *expert* is the checkpoint with the highest mean return,
the *medium* one is the first that covers half of the way from the random policy to the expert. Both are then measured
again on fresh seeds, and that number is the one in the JSON.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
import tyro
from gymnasium.spaces import Box

from promptdiffuser.evaluation.stepping import BatchPolicy, EpisodeRequest, EpisodeStepper
from promptdiffuser.seeding import numpy_generator, seed_at
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import ExpertNetwork, ExpertPolicy, RandomPolicy
from promptdiffuser.tasks.family import Floats, TaskFamily


@dataclass(frozen=True)
class ExpertTraining:
    """Settings of one PPO run over all tasks of a family."""

    family: str = "cheetah-vel"
    """Task family to train an expert for."""
    output: Path = Path("platform/promptdiffuser/tasks/expert_weights")
    """Folder that receives FAMILY-expert and FAMILY-medium."""
    total_steps: int = 9_000_000
    """Environment steps in all."""
    evaluate_every: int = 163_840
    """Environment steps between evaluations of the deterministic policy on all tasks."""
    final_episodes: int = 5
    """Episodes a task in the measurement that goes into the JSON."""
    num_envs: int = 16
    """Environments stepped in lockstep."""
    rollout_steps: int = 512
    """Steps an environment makes between updates."""
    batch_size: int = 512
    """Transitions in a minibatch."""
    epochs: int = 10
    """Passes over each rollout."""
    learning_rate: float = 6e-4
    """Initial Adam step size; it falls linearly to a tenth."""
    discount: float = 0.97
    """Reward discount per step."""
    hidden: int = 128
    """Width of the two hidden layers of policy and value networks."""
    seed: int = 0
    """Seed of everything."""


class EveryTask(gymnasium.Env[Floats, Floats]):
    """One environment that becomes a uniformly drawn task at each reset and shows the expert's features."""

    def __init__(self, family: TaskFamily) -> None:
        self.family = family
        self._envs = {task: family.make(task) for task in family.tasks}
        self.task = family.tasks[0]
        self._steps = 0
        template = np.zeros((1, family.observation_dim), np.float32)
        num_features = family.expert_features(template, np.zeros(1, np.float32)).shape[1]
        self.observation_space = Box(-np.inf, np.inf, (num_features,), np.float32)
        self.action_space = Box(-1.0, 1.0, (family.action_dim,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        super().reset(seed=seed)
        self.task = int(self.np_random.choice(self.family.tasks))
        self._steps = 0
        observation, info = self._envs[self.task].reset(seed=int(self.np_random.integers(2**31)))
        return self._features(observation), info

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, _, info = self._envs[self.task].step(action)
        self._steps += 1
        return self._features(observation), float(reward), terminated, self._steps >= self.family.horizon, info

    def _features(self, observation: Floats) -> Floats:
        return self.family.expert_features(observation[None], np.array([self.family.goal(self.task)], np.float32))[0]


def mean_returns(stepper: EpisodeStepper, policy: BatchPolicy, requests: Sequence[EpisodeRequest]) -> dict[int, float]:
    """Return the mean return of each task."""
    episodes = stepper.run(requests, policy)
    return {int(t): float(episodes.returns[episodes.tasks == t].mean()) for t in np.unique(episodes.tasks)}


def export(model: Any, normaliser: Any) -> ExpertNetwork:
    """Copy the deterministic part of a stable-baselines3 PPO policy."""
    state = {key: value.detach().cpu().numpy().copy() for key, value in model.policy.state_dict().items()}
    names = ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"]
    return ExpertNetwork(
        feature_mean=normaliser.obs_rms.mean.astype(np.float32),
        feature_std=np.sqrt(normaliser.obs_rms.var + normaliser.epsilon).astype(np.float32),
        weights=tuple(state[f"{name}.weight"].T for name in names),
        biases=tuple(state[f"{name}.bias"] for name in names),
    )


def train(config: ExpertTraining) -> None:
    """Train, select by the rule of the module's docstring, and write both checkpoints."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    torch.set_num_threads(1)
    family = get_family(config.family)
    stepper = EpisodeStepper(family)
    checkpoints: list[tuple[int, float, ExpertNetwork]] = []
    requests = [EpisodeRequest(task, seed_at(config.seed, "select", task) % 2**31) for task in family.tasks]

    class KeepCheckpoints(BaseCallback):  # type: ignore[misc]
        def _on_rollout_start(self) -> None:
            due = len(checkpoints) * config.evaluate_every
            if self.num_timesteps >= due:
                network = export(self.model, normalised)
                mean = float(np.mean(list(mean_returns(stepper, ExpertPolicy(family, network), requests).values())))
                checkpoints.append((self.num_timesteps, mean, network))
                print(
                    f"{self.num_timesteps:>9} steps  mean return over {len(family.tasks)} tasks {mean:8.2f}", flush=True
                )

        def _on_step(self) -> bool:
            return True

    normalised = VecNormalize(DummyVecEnv([lambda: EveryTask(family)] * config.num_envs), gamma=config.discount)
    normalised.seed(int(numpy_generator(config.seed, "ppo").integers(2**31)))
    model = PPO(
        "MlpPolicy",
        normalised,
        n_steps=config.rollout_steps,
        batch_size=config.batch_size,
        n_epochs=config.epochs,
        learning_rate=lambda remaining: config.learning_rate * max(remaining, 0.1),
        gamma=config.discount,
        policy_kwargs={"net_arch": [config.hidden, config.hidden]},
        seed=config.seed,
        device="cpu",
    )
    model.learn(config.total_steps, callback=KeepCheckpoints())

    fresh = [
        EpisodeRequest(task, seed_at(config.seed, "final", task, episode) % 2**31)
        for task in family.tasks
        for episode in range(config.final_episodes)
    ]
    random_returns = mean_returns(stepper, RandomPolicy(family, [request.seed for request in fresh]), fresh)
    random_mean = float(np.mean(list(random_returns.values())))
    expert = max(checkpoints, key=lambda checkpoint: checkpoint[1])
    halfway = (random_mean + expert[1]) / 2
    medium = next(checkpoint for checkpoint in checkpoints if checkpoint[1] >= halfway)
    for quality, (steps, selected_on, network) in {"expert": expert, "medium": medium}.items():
        returns = mean_returns(stepper, ExpertPolicy(family, network), fresh)
        record = {
            "family": family.name,
            "quality": quality,
            "rule": "expert: highest mean return at evaluations; medium: first at least halfway from random to expert",
            "command": f"python jobs/experts.py --family {family.name} --seed {config.seed}",
            "training": asdict(config) | {"output": None},
            "environment_steps": steps,
            "selection_mean_return": selected_on,
            "mean_return": float(np.mean(list(returns.values()))),
            "random_mean_return": random_mean,
            "returns_by_task": returns,
            "versions": {"mujoco": mujoco.__version__, "gymnasium": gymnasium.__version__, "torch": torch.__version__},
        }
        network.save(config.output, f"{family.name}-{quality}", record)
        print(f"{quality}: {steps} steps, mean return {record['mean_return']:.2f}")


if __name__ == "__main__":
    train(tyro.cli(ExpertTraining, description=__doc__))
    sys.exit(0)
