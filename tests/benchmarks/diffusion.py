"""Generating prompts: how long 64 of them take, and what samplers of few steps save.

Speeds do not depend on what the weights are, so the denoiser is untrained.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from promptdiffuser.data.windows import Segments
from promptdiffuser.diffusion.process import DiffusionConfig
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.models.denoiser import DenoiserConfig
from promptdiffuser.tasks import get_family
from promptdiffuser.training.model_folders import build_diffuser
from tests.benchmarks.entry import Ratio, Value

COMMAND = "python -m tests.benchmarks diffusion"
FAMILY = get_family("cheetah-vel")
PROMPTS, LENGTH, ROUNDS = 64, 5, 100
MLP = DenoiserConfig()
TRANSFORMER = DenoiserConfig(architecture="transformer", hidden=64)
GUIDED = DenoiserConfig(condition_dropout=0.25, condition_weight=1.2)
FIFTY = DiffusionConfig(steps=50)


def run() -> list[Value | Ratio]:
    """Take the fastest round of every setting: other processes can only slow one down."""
    default, slow = "default", "ddpm, 50 steps"
    fast = {name: f"{name}, 5 of 50 steps" for name in ("ddim", "dpm-solver")}
    works = {
        default: _generation(MLP, DiffusionConfig()),
        "transformer": _generation(TRANSFORMER, DiffusionConfig()),
        "guided": _generation(GUIDED, DiffusionConfig()),
        slow: _generation(MLP, FIFTY),
    } | {key: _generation(MLP, replace(FIFTY, sampler=name, sampling_steps=5)) for name, key in fast.items()}
    seconds = {name: min(times) for name, times in _times(works).items()}
    rate = {name: PROMPTS / value for name, value in seconds.items()}
    return [
        Value(f"diffusion.prompts{PROMPTS}_ms", 1e3 * seconds[default], "ms", COMMAND),
        Value(f"diffusion.transformer_prompts{PROMPTS}_ms", 1e3 * seconds["transformer"], "ms", COMMAND),
        Value(f"diffusion.guided_prompts{PROMPTS}_ms", 1e3 * seconds["guided"], "ms", COMMAND),
    ] + [
        Ratio(
            f"diffusion.{name}5_over_ddpm50", rate[key] / rate[slow], rate[key], rate[slow], "prompts/s", slow, COMMAND
        )
        for name, key in fast.items()
    ]


def _generation(denoiser: DenoiserConfig, diffusion: DiffusionConfig) -> Callable[[], object]:
    """Return what draws noise and generates prompts, as a method does."""
    features = FAMILY.observation_dim + FAMILY.action_dim + 1
    high = torch.full((LENGTH * features,), 3.0)
    space = PromptSpace(-high, high, torch.zeros(LENGTH), torch.ones(LENGTH), FAMILY.action_dim, FAMILY.horizon)
    diffuser = build_diffuser(denoiser, diffusion, space, FAMILY, False, "bench")
    steps = torch.zeros(PROMPTS, LENGTH)
    conditions = Segments(
        returns_to_go=steps,
        states=torch.zeros(PROMPTS, LENGTH, FAMILY.observation_dim),
        actions=torch.zeros(PROMPTS, LENGTH, FAMILY.action_dim),
        rewards=steps,
        timesteps=194 + torch.arange(LENGTH).repeat(PROMPTS, 1),
        valid=torch.ones_like(steps, dtype=torch.bool),
    )
    no_transitions = torch.zeros(PROMPTS, 0, features)

    @torch.no_grad()
    def generate() -> object:
        return diffuser.generate(conditions, no_transitions, diffuser.draw_noise(PROMPTS, "bench"))

    return generate


def _times(works: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Return seconds of each work in many rounds, in turn, so that a change of the machine's speed meets all."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
    return times
