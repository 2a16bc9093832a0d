"""Evaluating adapted policies on rollout actors: against raw stepping, the straightforward way, and one at a time."""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

import numpy as np
import torch

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.windows import PromptPool, cut_pool_pieces
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.experiment import ClusterConfig
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.rollout.blocks import EPISODES_PER_BLOCK, evaluation_blocks
from promptdiffuser.rollout.policies import AdaptedPolicies, PromptedPolicy
from promptdiffuser.rollout.protocol import ProtocolConfig
from promptdiffuser.rollout.stepping import EpisodeRequest, EpisodeStepper
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import RandomPolicy
from promptdiffuser.training.backbone_objective import freeze
from promptdiffuser.training.model_folders import build_backbone
from tests.benchmarks.entry import INFIX, Ratio, Value, cpu_formats
from tests.benchmarks.straightforward import StraightforwardBackbone, StraightforwardPolicy
from tests.rollout.synthetic_policies import backbone_of, prompted

COMMAND = "python -m tests.benchmarks evaluation"
FAMILY = get_family("cheetah-vel")
CONFIG = BackboneConfig(dropout=0.0)
BANDED_HISTORY = 3
"""Best on the validation tasks of cheetah-vel (docs/evaluation.md)."""
METHOD, CORES, ROUNDS = "bench", 2, 3
STRAIGHTFORWARD_EPISODES = 80


@dataclass(frozen=True)
class Way:
    """An attention and a number format, and how many blocks a core takes in one turn."""

    attention: Literal["full", "banded"]
    precision: Literal["bf16", "fp32"]
    blocks: int


WAYS = {
    "cached bf16": Way("banded", "bf16", 6),
    "cached fp32": Way("banded", "fp32", 4),
    "recomputed bf16": Way("full", "bf16", 2),
    "recomputed fp32": Way("full", "fp32", 1),
}


def run() -> list[Value | Ratio]:
    """Measure all by turns, so that a busy machine slows all of them alike; the public backbone size."""
    best, *_ = formats = cpu_formats()
    ways = {name: way for name, way in WAYS.items() if way.precision in formats}
    requests = [EpisodeRequest(task, seed) for seed, task in enumerate(FAMILY.train_tasks)]
    episodes = EpisodeStepper(FAMILY).run(requests, RandomPolicy(FAMILY))
    normaliser = Normaliser.fit([episodes], FAMILY.return_scale)
    prompts = PromptPool.build(
        cut_pool_pieces(episodes, CONFIG.prompt_length, 1), normaliser, torch.device("cpu")
    ).prompts

    def policies(attention: Literal["full", "banded"]) -> AdaptedPolicies:
        history = BANDED_HISTORY if attention == "banded" else CONFIG.history
        backbone = freeze(build_backbone(replace(CONFIG, attention=attention, history=history), FAMILY, 0))
        return prompted(backbone, normaliser, {METHOD: dict.fromkeys(FAMILY.tasks, prompts)})

    published = {attention: policies(attention) for attention in ("full", "banded")}
    connect(ClusterConfig())
    pools = {1: RolloutPool(FAMILY.name, 1), CORES: RolloutPool(FAMILY.name, CORES)}
    processes = multiprocessing.get_context("spawn").Pool(CORES)
    played = _play(published["banded"])

    def turn(way: Way, actors: int) -> float:
        return _evaluate(pools[actors], published[way.attention], way, actors)

    works: dict[str, Callable[[], float]] = {
        "raw": lambda: sum(processes.map(_step_raw, [played] * CORES)),
        **{name: lambda way=way: turn(way, CORES) for name, way in ways.items()},
        "one actor": lambda: turn(WAYS["cached fp32"], 1),
        "straightforward": lambda: processes.apply(_decide_in_batch, (published["full"], best == "bf16")),
        "one at a time": lambda: processes.apply(_decide_one_at_a_time, (published["full"],)),
    }
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(ROUNDS + 1):
        for name, work in works.items():
            rate = work()
            if number:  # the first is a warm-up
                taken[name].append(rate)
    processes.terminate()
    rates = {name: median(values) for name, values in taken.items()}
    memory_gib = pools[CORES].peak_memory_gib
    for pool in pools.values():
        pool.close()

    def ratio(name: str, ours: str, other: str, other_is: str) -> Ratio:
        return Ratio(name, rates[ours] / rates[other], rates[ours], rates[other], "policy steps/s", other_is, COMMAND)

    raw, alone = "raw stepping, one process a core", "one at a time, fp32, without physics"
    measured: list[Value | Ratio] = [
        ratio("eval.two_actors_over_one", "cached fp32", "one actor", "one actor"),
        Value("eval.actor_peak_memory", memory_gib, "GiB", COMMAND),
        ratio(
            f"eval.recompute_{INFIX[best]}over_straightforward",
            f"recomputed {best}",
            "straightforward",
            f"batched, {best}",
        ),
    ]
    for precision in formats:
        infix, recomputed = INFIX[precision], f"recomputed {precision}"
        measured += [
            Value(f"eval.recompute_{infix}steps_per_s", rates[recomputed], "policy steps/s", COMMAND),
            ratio(f"eval.recompute_{infix}over_serial", recomputed, "one at a time", alone),
            ratio(f"eval.cached_{infix}over_raw", f"cached {precision}", "raw", raw),
        ]
    return measured


def _evaluate(pool: RolloutPool, policies: AdaptedPolicies, way: Way, actors: int) -> float:
    """Return policy steps a second of full blocks of every test task, from the first block handed out to the last."""
    protocol = ProtocolConfig(prompts=16, episodes_per_prompt=EPISODES_PER_BLOCK // 16, precision=way.precision)
    tasks = (FAMILY.test_tasks * 3)[: way.blocks * actors]
    blocks = evaluation_blocks(protocol.requests(FAMILY, [METHOD], tasks), protocol, policies)
    started = time.perf_counter()
    steps = sum(int(frame["length"].sum()) for _, frame in pool.run(blocks, policies))
    return steps / (time.perf_counter() - started)


def _play(policies: AdaptedPolicies) -> Episodes:
    """Return episodes whose actions raw stepping repeats."""
    protocol = ProtocolConfig(prompts=16, episodes_per_prompt=1)
    requests = protocol.requests(FAMILY, [METHOD], FAMILY.test_tasks[:1])
    return EpisodeStepper(FAMILY).run(requests, PromptedPolicy(FAMILY, policies, backbone_of(policies)))


def _step_raw(episodes: Episodes) -> float:
    env = FAMILY.make(int(episodes.tasks[0]))
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < 2:
        for seed, actions in zip(episodes.seeds, episodes.actions, strict=True):
            env.reset(seed=int(seed))
            for action in actions:
                env.step(action)
            steps += len(actions)
    return steps / (time.perf_counter() - started)


def _straightforward(policies: AdaptedPolicies, num: int, bf16: bool) -> StraightforwardPolicy:
    torch.set_num_threads(CORES)
    model = StraightforwardBackbone(CONFIG, FAMILY.observation_dim, FAMILY.action_dim, FAMILY.horizon)
    all_prompts = policies.policies[METHOD][FAMILY.tasks[0]].prompts
    prompts = all_prompts.select(torch.arange(num) % len(all_prompts))
    return StraightforwardPolicy(model, prompts, CONFIG.history, bf16)


def _decide_in_batch(policies: AdaptedPolicies, bf16: bool) -> float:
    """Return policy steps a second of one batch of episodes, stepped in a loop over its environments."""
    policy = _straightforward(policies, STRAIGHTFORWARD_EPISODES, bf16)
    envs: list[Any] = [FAMILY.make(FAMILY.test_tasks[0]) for _ in range(STRAIGHTFORWARD_EPISODES)]
    observations = np.stack([env.reset(seed=seed)[0] for seed, env in enumerate(envs)])
    started, steps = time.perf_counter(), 60
    for _ in range(steps):
        actions = policy.act(policies.normaliser.states(torch.from_numpy(observations))).numpy()
        results = [env.step(action) for env, action in zip(envs, actions, strict=True)]
        observations = np.stack([result[0] for result in results])
        policy.observe(
            torch.tensor([result[1] for result in results], dtype=torch.float32) / policies.normaliser.return_scale
        )
    return steps * len(envs) / (time.perf_counter() - started)


def _decide_one_at_a_time(policies: AdaptedPolicies) -> float:
    """Return decisions a second as peers make them: one environment, fp32, the window anew; no physics."""
    policy = _straightforward(policies, 1, bf16=False)
    state, reward = torch.zeros(1, FAMILY.observation_dim), torch.zeros(1)
    started = time.perf_counter()
    for _ in range(FAMILY.horizon):
        policy.act(state)
        policy.observe(reward)
    return FAMILY.horizon / (time.perf_counter() - started)
