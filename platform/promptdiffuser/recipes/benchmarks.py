"""Benchmarks: methods, families, seeds, sizes of the few-shot set, and arms that differ in settings, in one table."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from promptdiffuser.errors import UserError
from promptdiffuser.experiment import Experiment
from promptdiffuser.methods import METHODS
from promptdiffuser.recipes.quickstart import quickstart
from promptdiffuser.sweeps.space import Value, apply
from promptdiffuser.training.projection import PROJECTIONS

LAMBDAS = (0.2, 1.0, 5.0, 25.0, 125.0)
"""Guidance weights of the ablation; the paper has 1."""

TRAINING_WINDOW_STEPS = 25
"""48 windows of 25 steps serve pre-training as well as 16 whole episodes, in less than half of the time
(docs/evaluation.md)."""
WINDOW_STEPS = 20
DENOISING_STEPS = 4_000
"""With guided updates after them about as good as 6,000 on validation tasks, though by L_DM alone they are far behind
(docs/guidance.md); what fits into the time of the benchmark of all methods."""
TUNED_PROMPTS = ("prompt_tensor_tuning", "soft_prompt", "prompt_tuning_dt")
TUNED_WEIGHTS = ("adapters", "lora", "fine_tuning")
"""Settings of the methods whose few-shot loss looks at windows."""
PROMPTS = 10
"""Prompts of a target task."""
STEPS_A_PROMPT = 40
"""Steps that one update of a prompt looks at; weights look at those of all prompts."""


@dataclass(frozen=True)
class Arm:
    """Settings that differ from the benchmark's own."""

    name: str
    changes: tuple[tuple[str, Value], ...] = ()
    """Dotted fields of the experiment and their values."""


@dataclass(frozen=True)
class BenchmarkCell:
    """One experiment of a benchmark."""

    arm: str
    seed: int
    few_shot_episodes: int
    experiment: Experiment


@dataclass(frozen=True)
class Benchmark:
    """Methods on equal terms: the same backbone, few-shot episodes and start states for all, several seeds of each.

    A seed is a draw of the few-shot set and of the start states, a training of every diffuser and a draw of everything
    that a method draws. The backbone is the same for all seeds, trained with the experiment's own.
    """

    name: str
    """Name of the benchmark's run in MLflow."""
    experiment: Experiment
    """All other settings, and the methods that are compared."""
    families: tuple[str, ...] = ("cheetah-vel",)
    """Task families, each a table of its own."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Seeds, each above 0."""
    few_shot_episodes: tuple[int, ...] = (5,)
    """Sizes of the few-shot set."""
    reference: str = "prompt-dt"
    """Method that the others are compared with."""
    reference_arm: str | None = None
    """Arm whose reference method all arms are compared with; None compares within each arm."""
    arms: Annotated[tuple[Arm, ...], tyro.conf.Suppress] = field(default=(Arm(""),))
    """Variants of the settings, each run with every method and seed."""

    def __post_init__(self) -> None:
        """Refuse an empty benchmark, values that are named twice, and cells that no experiment could be."""
        for name in ("families", "seeds", "few_shot_episodes", "arms"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must name each value once and at least one, got {values}")
        if min(self.seeds) < 1:
            raise ValueError(f"seeds must be above 0, got {min(self.seeds)}: 0 is the backbone's")
        if self.reference not in self.experiment.methods:
            raise ValueError(f"reference {self.reference!r} is not among the methods that are compared")
        if self.reference_arm is not None and self.reference_arm not in {arm.name for arm in self.arms}:
            raise ValueError(f"reference_arm {self.reference_arm!r} is not among the arms that are run")
        for family in self.families:
            list(self.cells(family))

    def of_arms(self, names: Sequence[str]) -> "Benchmark":
        """Return the benchmark with some of its arms; raises `UserError` for a name that none has."""
        if unknown := set(names) - {arm.name for arm in self.arms}:
            known = ", ".join(repr(arm.name) for arm in self.arms)
            raise UserError(f"the benchmark has no arm {min(unknown)!r}; its arms are {known}")
        return replace(self, arms=tuple(arm for arm in self.arms if arm.name in names))

    def base(self, family: str) -> Experiment:
        """Return the experiment whose dataset and backbones all cells of a family share."""
        return replace(self.experiment, family=family)

    def cells(self, family: str) -> Iterator[BenchmarkCell]:
        """Yield the experiments of a family; raises `UserError` or `ValueError` for one that cannot be."""
        for arm, seed, episodes in itertools.product(self.arms, self.seeds, self.few_shot_episodes):
            experiment = apply(dict(arm.changes), self.base(family))
            few_shot = replace(experiment.evaluation.few_shot, episodes=episodes, draw=seed)
            evaluation = replace(experiment.evaluation, few_shot=few_shot, seed=seed)
            yield BenchmarkCell(arm.name, seed, episodes, replace(experiment, seed=seed, evaluation=evaluation))


def banded_quickstart(name: str) -> Experiment:
    """Return the quickstart on a backbone with banded attention, which evaluates five times as fast.

    On the quickstart's data it gets the same returns (docs/evaluation.md). It learns from windows, although it can take
    whole episodes, and all that learns through it does so too.
    """
    base = quickstart()
    pretraining, adaptation = base.pretraining, base.adaptation
    batch_steps = dict.fromkeys(TUNED_PROMPTS, STEPS_A_PROMPT) | dict.fromkeys(TUNED_WEIGHTS, PROMPTS * STEPS_A_PROMPT)
    tuned = {
        name: replace(getattr(adaptation, name), window_steps=WINDOW_STEPS, batch_steps=steps)
        for name, steps in batch_steps.items()
    }
    return replace(
        base,
        name=name,
        backbone=replace(base.backbone, attention="banded", history=3),
        pretraining=replace(
            pretraining, loss=replace(pretraining.loss, batch_size=48, window_steps=TRAINING_WINDOW_STEPS)
        ),
        guidance=replace(base.guidance, batch_size=16, window_steps=WINDOW_STEPS),
        diffuser=replace(
            base.diffuser,
            denoising_steps=DENOISING_STEPS,
            guidance_start=0,
            optimised_prompts=replace(base.diffuser.optimised_prompts, window_steps=WINDOW_STEPS),
        ),
        # A round of 25 episodes takes a quarter longer than one of fifteen.
        adaptation=replace(
            adaptation,
            prompt_bandit=replace(adaptation.prompt_bandit, at_a_time=25),
            best_of=replace(adaptation.best_of, batch_steps=200),
            **tuned,
        ),
        evaluation=replace(base.evaluation, prompts=PROMPTS, episodes_per_prompt=2),
    )


def guidance_ablation() -> Benchmark:
    """Every way of joining L_DM and L_DT x lambda x raw or norm-matched, on a context diffuser, five seeds."""
    base = banded_quickstart("guidance-ablation")
    multi_task = replace(base.diffuser.multi_task, steps=100, checkpoint_every=100, average_decay=0.95)
    downstream = (("guidance.losses", "downstream"), ("guidance.projection", "sum"), ("guidance.match_norms", False))
    alone = (
        Arm("L_DM", (("guidance.weight", 0.0),)),
        *(Arm(f"L_DT {weight:g}", (*downstream, ("guidance.weight", weight))) for weight in LAMBDAS),
    )
    joined = tuple(
        Arm(
            f"{projection} {'matched' if matched else 'raw'} {weight:g}",
            (
                ("guidance.projection", projection),
                ("guidance.weight", weight),
                ("guidance.match_norms", matched),
            ),
        )
        for projection in PROJECTIONS
        for matched in (True, False)
        for weight in LAMBDAS
    )
    return Benchmark(
        name="guidance-ablation",
        experiment=replace(
            base,
            methods=("prompt-diffuser-multi-task",),
            diffuser=replace(base.diffuser, multi_task=multi_task),
            evaluation=replace(base.evaluation, prompts=8, episodes_per_prompt=2),
        ),
        reference="prompt-diffuser-multi-task",
        reference_arm="L_DM",
        arms=alone + joined,
    )


def all_methods() -> Benchmark:
    """Every method on cheetah-vel with 5 few-shot episodes, five seeds, on the backbone of the ablation."""
    base = banded_quickstart("cheetah-vel-methods")
    multi_task = replace(base.diffuser.multi_task, steps=400)
    return Benchmark(
        name="cheetah-vel-methods",
        experiment=replace(
            base,
            methods=tuple(METHODS),
            collection=replace(base.collection, qualities=("expert", "medium", "random")),
            diffuser=replace(base.diffuser, multi_task=multi_task),
        ),
    )
