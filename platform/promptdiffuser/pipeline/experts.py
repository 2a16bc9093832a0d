"""Make the experts of task families and measure the reference returns of every task.

    python jobs/experts.py cheetah-dir ant-dir hopper-params

*Learned experts* (locomotion): PPO conditioned on the goal, one Ray task a family and seed; needs the extra `experts`
(stable-baselines3). Checkpoints are kept by a fixed rule: every `evaluate_every` steps the deterministic policy runs
one seeded episode of every task; the *expert* is the checkpoint with the highest mean return, over all seeds, the
*medium* one is the first of the same training that covers half of the way from the random policy to the expert.

*Scripted experts* (Meta-World) need no training. Their *medium* policy replaces a share of the actions by random ones,
the smallest share, in tenths, that brings the mean return to half of the way or below.

All are measured again on fresh seeds, and those numbers are the ones in the JSON files. Beside them stand the returns
of policies that take one action all the time: zeros, or the mean action of expert episodes of the training tasks.

    python jobs/experts.py ant-dir --references-only    (measures these two again, trains nothing)
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
import tyro
from gymnasium.spaces import Box
from numpy.typing import NDArray

from promptdiffuser.data.manifest import package_versions
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.tasks import run_tasks
from promptdiffuser.errors import UserError
from promptdiffuser.experiment import ClusterConfig
from promptdiffuser.rng import SIMULATOR_SEEDS, numpy_generator, seed_at
from promptdiffuser.rollout.blocks import demonstrate
from promptdiffuser.rollout.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import (
    QUALITIES,
    ConstantPolicy,
    Demonstrator,
    ExpertNetwork,
    Quality,
    shipped_demonstrator,
)
from promptdiffuser.tasks.family import Floats, LearnedExpert, TaskFamily
from promptdiffuser.tasks.references import Reference, rows, write_references

TASKS_FOLDER = Path("platform/promptdiffuser/tasks")
LUCKY_EPISODES = 10
"""Fresh episodes of the random policy on each task that it solved by chance."""
CALIBRATION_TASKS = 10
"""Tasks, spread over the family, on which a scripted family's medium policy is chosen and measured."""


@dataclass(frozen=True)
class PPOConfig:
    """Settings of one PPO run over all tasks of a family."""

    total_steps: int = 9_000_000
    """Environment steps in all."""
    evaluate_every: int = 163_840
    """Environment steps between evaluations of the deterministic policy on all tasks."""
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


@dataclass(frozen=True)
class ExpertsJob:
    """Command line of the job."""

    families: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Task families to make experts for."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the trainings of a learned expert; the best one is kept."""
    reference_episodes: int = 5
    """Episodes a task of the random policy and of the expert for the reference returns."""
    reference_stride: int = 1
    """Measure one task in so many; those between have the references of the measured one before them. For families of
    thousands of tasks, where neighbours are goals of one class."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    references_only: bool = False
    """Measure the policies of one action for families whose expert is shipped, and leave all other numbers as they
    are."""
    output: Path = TASKS_FOLDER
    """Folder that receives expert_weights/ and reference_returns/."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass(frozen=True)
class Training:
    """One PPO run."""

    family: str
    seed: int
    config: PPOConfig


@dataclass(frozen=True)
class Checkpoint:
    """The deterministic policy at one moment of a training."""

    steps: int
    mean_return: float
    """Over one seeded episode of every task."""
    network: ExpertNetwork


class EveryTask(gymnasium.Env[Floats, Floats]):
    """One environment that becomes a uniformly drawn task at each reset and shows the expert's features."""

    def __init__(self, family: TaskFamily) -> None:
        self.family = family
        self.task = family.tasks[0]
        assert isinstance(family.expert, LearnedExpert)
        self._env, self._expert = family.make(self.task), family.expert
        self._goal = np.array([family.goal(self.task)], np.float32)
        self._steps = 0
        num_features = len(self._features(np.zeros(family.observation_dim, np.float32)))
        self.observation_space = Box(-np.inf, np.inf, (num_features,), np.float32)
        self.action_space = Box(-1.0, 1.0, (family.action_dim,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        super().reset(seed=seed)
        self.task = int(self.np_random.choice(self.family.tasks))
        self._env.set_task(self.task)
        self._goal = np.array([self.family.goal(self.task)], np.float32)
        self._steps = 0
        observation, info = self._env.reset(seed=int(self.np_random.integers(2**31)))
        return self._features(observation), info

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, _, info = self._env.step(self._expert.actions(action[None], self._goal)[0])
        self._steps += 1
        return self._features(observation), float(reward), terminated, self._steps >= self.family.horizon, info

    def _features(self, observation: Floats) -> Floats:
        features: Floats = self._expert.features(observation[None], self._goal)[0]
        return features


def requests_of(purpose: str, tasks: Sequence[int], episodes: int, seed: int) -> list[EpisodeRequest]:
    """Return seeded episodes of tasks; the purpose keeps those that select and those that measure apart."""
    return [
        EpisodeRequest(task, seed_at(seed, purpose, task, number) % SIMULATOR_SEEDS)
        for task in tasks
        for number in range(episodes)
    ]


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


def train(training: Training) -> list[Checkpoint]:
    """Run PPO and return every evaluated checkpoint."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    family, config = get_family(training.family), training.config
    checkpoints: list[Checkpoint] = []
    requests = requests_of("select", family.tasks, 1, training.seed)

    class KeepCheckpoints(BaseCallback):
        def _on_rollout_start(self) -> None:
            if self.num_timesteps >= len(checkpoints) * config.evaluate_every:
                network = export(self.model, normalised)
                mean = float(demonstrate(EpisodeStepper(family), network, requests).returns.mean())
                checkpoints.append(Checkpoint(self.num_timesteps, mean, network))
                print(
                    f"{family.name} seed {training.seed}: {self.num_timesteps:>9} steps, mean return {mean:8.2f} "
                    f"over {len(family.tasks)} tasks",
                    flush=True,
                )

        def _on_step(self) -> bool:
            return True

    normalised = VecNormalize(DummyVecEnv([lambda: EveryTask(family)] * config.num_envs), gamma=config.discount)
    normalised.seed(int(numpy_generator(training.seed, "ppo").integers(2**31)))
    model = PPO(
        "MlpPolicy",
        normalised,
        n_steps=config.rollout_steps,
        batch_size=config.batch_size,
        n_epochs=config.epochs,
        learning_rate=lambda remaining: config.learning_rate * max(remaining, 0.1),
        gamma=config.discount,
        policy_kwargs={"net_arch": [config.hidden, config.hidden]},
        seed=training.seed,
        device="cpu",
    )
    model.learn(config.total_steps, callback=KeepCheckpoints())
    return checkpoints


def measure(work: tuple[str, Demonstrator | None, list[EpisodeRequest]]) -> dict[int, tuple[float, float]]:
    """Return the mean return and the share of solved episodes of each task."""
    family, demonstrator, requests = get_family(work[0]), *work[1:]
    episodes = demonstrate(EpisodeStepper(family), demonstrator, requests)
    by_task = {int(task): episodes.tasks == task for task in np.unique(episodes.tasks)}
    return {t: (float(episodes.returns[m].mean()), float(episodes.successes[m].mean())) for t, m in by_task.items()}


def measure_all(
    family: TaskFamily, demonstrator: Demonstrator | None, requests: list[EpisodeRequest]
) -> dict[int, tuple[float, float]]:
    """Measure on the cluster, a few tasks at a time."""
    work = [(family.name, demonstrator, group) for group in grouped(requests)]
    return {task: result for _, results in run_tasks(measure, work) for task, result in sorted(results.items())}


def grouped(requests: list[EpisodeRequest]) -> list[list[EpisodeRequest]]:
    """Divide episodes into those of a few tasks each."""
    tasks = sorted({request.task for request in requests})
    groups = [set(tasks[start : start + 5]) for start in range(0, len(tasks), 5)]
    return [[request for request in requests if request.task in group] for group in groups]


def sum_actions(work: tuple[str, Demonstrator, list[EpisodeRequest]]) -> tuple[NDArray[np.float64], int]:
    """Return the sum of a demonstrator's actions (A,) and their number."""
    family, demonstrator, requests = get_family(work[0]), *work[1:]
    episodes = demonstrate(EpisodeStepper(family), demonstrator, requests)
    happened_NT = np.arange(family.horizon) < episodes.lengths[:, None]
    return episodes.actions[happened_NT].sum(axis=0, dtype=np.float64), int(happened_NT.sum())


def mean_action(family: TaskFamily, expert: Demonstrator, requests: list[EpisodeRequest]) -> tuple[float, ...]:
    """Return the mean over all steps of an expert's episodes."""
    work = [(family.name, expert, group) for group in grouped(requests)]
    # Added up in the order of the tasks, not of arrival.
    sums = sorted((item[2][0].task, *result) for item, result in run_tasks(sum_actions, work))
    total = sum((actions for _, actions, _ in sums), np.zeros(family.action_dim))
    return tuple((total / sum(steps for _, _, steps in sums)).round(6).tolist())


@dataclass(frozen=True)
class ConstantActions:
    """What policies of one action get."""

    mean_action: tuple[float, ...]
    zero_returns: dict[int, float]
    """Measured task -> mean return of zero actions."""
    mean_action_returns: dict[int, float]
    """Measured task -> mean return of the mean action."""

    @property
    def record(self) -> dict[str, Any]:
        """What a reference file says of the mean action."""
        return {
            "mean_action": self.mean_action,
            "mean_action_of": "every step of one expert episode of every measured training task",
        }


def measure_constant_actions(
    family: TaskFamily, expert: Demonstrator, tasks: Sequence[int], episodes: int, seed: int
) -> ConstantActions:
    """Find the mean action of the training tasks and measure it, and zero actions, on the random policy's episodes."""
    training_tasks = [task for task in tasks if task in set(family.train_tasks)]
    action = mean_action(family, expert, requests_of("mean-action", training_tasks, 1, seed))
    # Where all episodes of a task start alike, a policy that always acts alike gets the same return in each.
    requests = requests_of("final", tasks, episodes if family.random_start else 1, seed)
    zero, mean = (
        {task: value for task, (value, _) in measure_all(family, ConstantPolicy(constant), requests).items()}
        for constant in ((0.0,) * family.action_dim, action)
    )
    return ConstantActions(action, zero, mean)


def mean_return(measured: dict[int, tuple[float, float]]) -> float:
    """Return the mean over tasks."""
    return float(np.mean([value for value, _ in measured.values()]))


def choose_network(trained: dict[int, list[Checkpoint]], random_mean: float) -> tuple[int, dict[Quality, Checkpoint]]:
    """Return the seed that is kept and its expert and medium checkpoints."""
    seed = max(trained, key=lambda seed: max(checkpoint.mean_return for checkpoint in trained[seed]))
    expert = max(trained[seed], key=lambda checkpoint: checkpoint.mean_return)
    halfway = (random_mean + expert.mean_return) / 2
    medium = next(checkpoint for checkpoint in trained[seed] if checkpoint.mean_return >= halfway)
    return seed, {"expert": expert, "medium": medium}


def calibration_tasks(family: TaskFamily) -> tuple[int, ...]:
    """Return tasks spread over the family."""
    return family.tasks[:: max(1, len(family.tasks) // CALIBRATION_TASKS)][:CALIBRATION_TASKS]


def choose_random_share(family: TaskFamily, seed: int) -> tuple[float, dict[str, float]]:
    """Return the medium policy's share of random actions, and the mean return at every share tried."""
    requests = requests_of("select", calibration_tasks(family), 3, seed)
    shares = [tenth / 10 for tenth in range(11)]
    means = {
        share: float(np.mean([value for value, _ in results.values()]))
        for (_, share, _), results in run_tasks(measure, [(family.name, share, requests) for share in shares])
    }
    halfway = (means[0.0] + means[1.0]) / 2
    return min(share for share in shares if means[share] <= halfway), {str(s): means[s] for s in shares}


def command_of(job: ExpertsJob, family: TaskFamily) -> str:
    """Return the command that makes a family's experts again."""
    changed = [
        f"--ppo.{name.replace('_', '-')} {value}"
        for name, value in asdict(job.ppo).items()
        if value != getattr(PPOConfig(), name)
    ]
    references = [
        f"--{name.replace('_', '-')} {getattr(job, name)}"
        for name, default in (("reference_episodes", 5), ("reference_stride", 1))
        if getattr(job, name) != default
    ]
    return " ".join(["python jobs/experts.py", family.name, "--seeds", *map(str, job.seeds), *references, *changed])


def ship(job: ExpertsJob, family: TaskFamily, trained: dict[int, list[Checkpoint]]) -> None:
    """Choose, measure on fresh seeds, and write a family's experts and reference returns."""
    measured_tasks = family.tasks[:: job.reference_stride]
    fresh = requests_of("final", measured_tasks, job.reference_episodes, job.seeds[0])
    random_policy = measure_all(family, None, fresh)
    # A drawer that random actions happen to close pays for the rest of the episode: one such return is no mean.
    lucky = [task for task, (_, success) in random_policy.items() if success > 0]
    random_policy |= measure_all(family, None, requests_of("again", lucky, LUCKY_EPISODES, job.seeds[0]))
    makers: dict[Quality, tuple[Demonstrator, dict[str, Any]]]
    if isinstance(family.expert, LearnedExpert):
        seed, chosen = choose_network(trained, mean_return(random_policy))
        makers = {
            quality: (
                checkpoint.network,
                {
                    "training": asdict(job.ppo) | {"seed": seed},
                    "environment_steps": checkpoint.steps,
                    "selection_mean_return": checkpoint.mean_return,
                },
            )
            for quality, checkpoint in chosen.items()
        }
    else:
        share, tried = choose_random_share(family, job.seeds[0])
        makers = {
            "expert": (0.0, {"random_share": 0.0}),
            "medium": (share, {"random_share": share, "mean_return_by_random_share": tried}),
        }
    measured = {
        quality: measure_all(
            family,
            demonstrator,
            # A scripted medium policy is measured where it was chosen: the families are large, and simulating is slow.
            fresh
            if quality == "expert" or isinstance(demonstrator, ExpertNetwork)
            else requests_of("final", calibration_tasks(family), job.reference_episodes, job.seeds[0]),
        )
        for quality, (demonstrator, _) in makers.items()
    }
    for quality, (demonstrator, how) in makers.items():
        record = {
            "family": family.name,
            "quality": quality,
            "rule": QUALITIES[quality],
            "command": command_of(job, family),
            **how,
            "mean_return": mean_return(measured[quality]),
            "success": float(np.mean([success for _, success in measured[quality].values()])),
            "random_mean_return": mean_return(random_policy),
            "returns_by_task": {task: value for task, (value, _) in sorted(measured[quality].items())},
            "versions": package_versions(),
        }
        folder, name = job.output / "expert_weights", f"{family.name}-{quality}"
        if isinstance(demonstrator, ExpertNetwork):
            demonstrator.save(folder, name, record)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        print(f"{family.name} {quality}: mean return {record['mean_return']:.2f}, success {record['success']:.3f}")
    constant = measure_constant_actions(
        family, makers["expert"][0], measured_tasks, job.reference_episodes, job.seeds[0]
    )
    document = {
        "family": family.name,
        "command": command_of(job, family),
        "episodes_per_task": job.reference_episodes,
        "seed": job.seeds[0],
        "measured_every": job.reference_stride,
        **constant.record,
        "versions": package_versions(),
    }
    references = {
        task: Reference(
            random_return=random_policy[task][0],
            zero_return=constant.zero_returns[task],
            mean_action_return=constant.mean_action_returns[task],
            expert_return=measured["expert"][task][0],
            expert_success=measured["expert"][task][1],
        )
        for task in measured_tasks
    }
    everywhere = {
        task: references[measured_tasks[place // job.reference_stride]] for place, task in enumerate(family.tasks)
    }
    write_references(references_file(job, family), document, everywhere)


def references_file(job: ExpertsJob, family: TaskFamily) -> Path:
    """Return where the job writes a family's references."""
    return job.output / "reference_returns" / f"{family.name}.json"


def renew_constant_actions(job: ExpertsJob, family: TaskFamily) -> None:
    """Measure the constant policies of a family and add them to its reference file, which otherwise stays as it is."""
    file = references_file(job, family)
    document = json.loads(file.read_text())
    stride = document["measured_every"]
    measured_tasks, before = family.tasks[::stride], rows(document)
    constant = measure_constant_actions(
        family,
        shipped_demonstrator(family, "expert"),
        measured_tasks,
        document["episodes_per_task"],
        document["seed"],
    )
    references = {}
    for place, task in enumerate(family.tasks):
        source = measured_tasks[place // stride]
        changed = {
            "zero_return": constant.zero_returns[source],
            "mean_action_return": constant.mean_action_returns[source],
        }
        references[task] = Reference(**before[str(task)] | changed)
    write_references(file, document | constant.record, references)


def main(job: ExpertsJob) -> None:
    """Train all families and seeds side by side, then choose and measure family by family."""
    families = [get_family(name) for name in job.families]
    for family in families:
        if family.expert_of:
            raise UserError(f"{family.name} has the experts of {family.expert_of}; make those")
        if job.references_only and not references_file(job, family).is_file():
            raise UserError(
                f"{references_file(job, family)} does not exist; "
                f"`python jobs/experts.py {family.name}` makes experts and references"
            )
    connect(job.cluster)
    if job.references_only:
        for family in families:
            renew_constant_actions(job, family)
        return
    trainings = [
        Training(family.name, seed, job.ppo)
        for family in families
        if isinstance(family.expert, LearnedExpert)
        for seed in job.seeds
    ]
    trained: dict[str, dict[int, list[Checkpoint]]] = {}
    for training, checkpoints in run_tasks(train, trainings):
        trained.setdefault(training.family, {})[training.seed] = checkpoints
    for family in families:
        ship(job, family, trained.get(family.name, {}))
