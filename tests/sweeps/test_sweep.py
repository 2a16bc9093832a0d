"""A sweep that cannot work is refused when it is made, by name."""

from dataclasses import replace
from typing import Any

import pytest

from promptdiffuser.errors import UserError
from promptdiffuser.experiment import Experiment
from promptdiffuser.sweeps.space import Choices, Range
from promptdiffuser.sweeps.sweep import Sweep
from promptdiffuser.training.engine import OptimisationConfig

WEIGHTS = {"guidance.weight": Choices((0.0, 1.0))}


def sweep(**changes: Any) -> Sweep:
    return Sweep(**{"name": "some", "experiment": Experiment(name="some"), "space": WEIGHTS} | changes)


def snapshots(model: str, use: str = "best") -> Experiment:
    """Return an experiment that takes snapshots of a model while it trains."""
    optimisation, base = OptimisationConfig(snapshot_every=10, use=use), Experiment(name="some")
    if model == "backbone":
        return replace(base, pretraining=replace(base.pretraining, optimisation=optimisation))
    return replace(base, diffuser=replace(base.diffuser, multi_task=optimisation))


POPULATION = {"stopping": "population", "score_every": 10, "search": "random", "trials": 8}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {"guidance.wait": Choices((1.0,))}}, ("guidance.wait", "does not exist")),
        ({"space": {}}, ("empty",)),
        ({"objective": "test/return"}, ("test/return", "validation", "--confirm")),
        ({"search": "nsga2", "trials": 4, "cost": "test/return"}, ("test/return", "must not")),
        ({"objective": "validation/luck"}, ("validation/luck", "validation/return")),
        ({"search": "random"}, ("no end", "trials")),
        ({"space": {"guidance.weight": Range(0.0, 1.0)}}, ("guidance.weight", "range")),
        ({"method": "prompt-dt"}, ("guidance.weight", "prompt-dt")),
        ({"space": {"diffuser.few_shot.steps": Choices((1, 2))}}, ("diffuser.few_shot.steps", "nothing")),
        (
            {"method": "lora", "space": {"adaptation.adapters.bottleneck": Choices((4, 8))}},
            ("adaptation.adapters.bottleneck", "decides nothing for method lora"),
        ),
        ({"stopping": "asha"}, ("asha", "score_every")),
        ({"search": "nsga2", "trials": 4, "stopping": "asha", "score_every": 10}, ("nsga2", "stopping none")),
        (POPULATION | {"space": {"backbone.layers": Choices((1, 2))}}, ("population", "checkpoints", "Ray Train")),
        (POPULATION | {"space": {"diffusion.steps": Choices((3, 5))}}, ("diffusion.steps", "guidance.weight")),
        (POPULATION | {"trials": 5}, ("population", "trials")),
        ({"concurrency": -1}, ("concurrency", "-1")),
        ({"space": {"diffuser.denoising_steps": Choices((0, 5))}}, ("diffuser.denoising_steps", "guidance_start")),
        ({"method": "prompt-diffuser-optimised"}, ("prompt-diffuser-optimised", "prompt-diffuser-multi-task")),
        ({"experiment": snapshots("diffuser")}, ("diffuser.multi_task.use", "last", "snapshots")),
        ({"experiment": snapshots("diffuser", use="last")}, ("diffuser.multi_task.snapshot_every", "must be 0")),
        (
            {"space": {"backbone.layers": Choices((1, 2))}, "method": "prompt-dt", "experiment": snapshots("backbone")},
            ("pretraining.optimisation.use", "last"),
        ),
        (
            {"space": {"pretraining.optimisation.snapshot_every": Choices((0, 5))}, "method": "prompt-dt"},
            ("pretraining.optimisation.snapshot_every", "out of the space"),
        ),
        (
            {"method": "lora", "search": "nsga2", "trials": 4, "space": {"adaptation.lora.rank": Choices((1, 2))}},
            ("cost/gradient_steps", "lora", "time/seconds"),
        ),
    ],
)
def test_an_impossible_sweep_is_refused_by_name(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refusal:
        sweep(**changes)
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_scores_are_taken_as_the_rule_asks_for_them() -> None:
    assert sweep().milestones(600) == [600]
    assert sweep(stopping="asha", score_every=100, reduction=2).milestones(600) == [100, 200, 400, 600]
    assert sweep(stopping="asha", score_every=100, reduction=3).milestones(300) == [100, 300]
    assert sweep(stopping="median", score_every=250).milestones(600) == [250, 500, 600]


def test_a_space_with_fields_of_the_backbone_trains_one_a_trial() -> None:
    assert not sweep().trains_backbone
    assert sweep(space={"backbone.prompt_length": Choices((3, 5))}, method="prompt-dt").trains_backbone


def test_snapshots_of_trainings_that_trials_do_not_make_are_allowed() -> None:
    assert not sweep(experiment=snapshots("backbone")).trains_backbone
    by_backbone = {"space": {"backbone.layers": Choices((1, 2))}, "method": "prompt-dt"}
    assert sweep(experiment=snapshots("diffuser"), **by_backbone).trains_backbone


@pytest.mark.parametrize(
    ("changes", "most", "words"),
    [
        ({}, 2, "sweep some: grid of 2 points\n  guidance.weight  0,1"),
        ({"trials": 1}, 1, "grid of 2 points, the first 1 of them"),
        ({"trials": 9}, 2, "grid of 2 points\n"),
        ({"search": "random", "trials": 5}, 5, "search random, 5 trials\n"),
        (
            {"search": "random", "trial_hours": 1.5, "environment_steps": 200},
            None,
            "search random, until 1.5 hours of trials or 200 environment steps are spent\n",
        ),
        (
            {"space": {"guidance.weight": Range(0.1, 20, log=True)}, "search": "tpe", "trials": 5, "trial_hours": 2.0},
            5,
            "search tpe, 5 trials, until 2 hours of trials are spent\n  guidance.weight  log:0.1..20",
        ),
    ],
)
def test_a_sweep_says_its_size_and_what_ends_it(changes: dict[str, Any], most: int | None, words: str) -> None:
    assert sweep(**changes).most_trials == most
    assert words in sweep(**changes).describe()
