"""Ways to step a batch of one family on one core: ours, gymnasium's vector environment, mujoco.rollout."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import gymnasium
import mujoco
import numpy as np
from mujoco import rollout

from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.family import Floats, TaskFamily
from tests.benchmarks.entry import Ratio

COMMAND = "python -m tests.benchmarks physics"
FAMILIES = ("cheetah-vel", "ant-dir", "walker-params", "reach")
SHORT = {"a loop over step": "loop", "SyncVectorEnv": "vector", "mujoco.rollout, 1 thread": "rollout"}
ROWS, STEPS, ROUNDS = 32, 50, 5


def run() -> list[Ratio]:
    """Measure every way on the same actions, by turns."""
    return [ratio for name in FAMILIES for ratio in _measure(get_family(name))]


def _measure(family: TaskFamily) -> list[Ratio]:
    rows = min(ROWS, family.max_simulators)
    actions_TBA = np.random.default_rng(0).uniform(-1, 1, (STEPS, rows, family.action_dim)).astype(np.float32)
    envs = [family.make(family.tasks[0]) for _ in range(rows)]
    ways: dict[str, Callable[[Floats], object]] = {
        "together": partial(type(envs[0]).step_together, envs),
        "a loop over step": lambda actions_BA: [env.step(action) for env, action in zip(envs, actions_BA, strict=True)],
    }
    vector = gymnasium.vector.SyncVectorEnv([lambda: family.make(family.tasks[0])] * rows)
    ways["SyncVectorEnv"] = vector.step
    if hasattr(envs[0], "frame_skip"):
        ways["mujoco.rollout, 1 thread"] = _rollout(envs)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, step in ways.items():
            vector.reset(seed=0)
            for row, env in enumerate(envs):
                env.reset(seed=row)
            started = time.perf_counter()
            for actions_BA in actions_TBA:
                step(actions_BA)
            rates[name].append(rows * STEPS / (time.perf_counter() - started))
    ours = median(rates.pop("together"))
    return [
        Ratio(
            f"physics.{family.name}_over_{SHORT[key]}", ours / median(rate), ours, median(rate), "steps/s", key, COMMAND
        )
        for key, rate in rates.items()
    ]


def _rollout(envs: list[Any]) -> Callable[[Floats], object]:
    """Return a function that steps all states by one control, without rewards and observations."""
    model, skip = envs[0].model, envs[0].frame_skip
    kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
    states = np.zeros((len(envs), mujoco.mj_stateSize(model, kind)))
    engine, data = rollout.Rollout(nthread=1), [mujoco.MjData(model)]

    def step(actions_BA: Floats) -> None:
        if envs[0].data.time == 0:
            for env, state in zip(envs, states, strict=True):
                mujoco.mj_getState(model, env.data, state, kind)
            envs[0].data.time = -1.0
        controls = np.repeat(actions_BA[:, None].astype(np.float64), skip, axis=1)
        states[:] = engine.rollout(model, data, states, controls)[0][:, -1]

    return step
