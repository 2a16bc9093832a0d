"""Stopping rules see the trials in the order of their numbers, whatever happens to have arrived."""

import math
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pbt import _PBTTrialState

from promptdiffuser.distributed import population, stopping
from promptdiffuser.distributed.stopping import stops
from promptdiffuser.experiment import Experiment
from promptdiffuser.sweeps.ledger import Ledger
from promptdiffuser.sweeps.space import Choices
from promptdiffuser.sweeps.sweep import Sweep
from promptdiffuser.training.checkpoint import write_json

SCORES = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.0, 3.5]


def ledger_of(folder: Path, rule: Literal["asha", "median"], scores: list[float], **options: Any) -> Ledger:
    """Return a sweep whose trials have all got as far as update 10."""
    space = {"guidance.weight": Choices(tuple(float(number) for number in range(12)))}
    sweep = Sweep("some", Experiment(name="some"), space, stopping=rule, score_every=10, **options)
    ledger = Ledger(folder, sweep)
    for score in scores:
        number = ledger.propose()
        assert number is not None
        ledger.write_scores(number, {10: {"validation/return": score}})
    return ledger


@pytest.mark.parametrize("reduction", [2, 4])
def test_asha_lets_the_best_share_of_the_trials_so_far_go_on(tmp_path: Path, reduction: int) -> None:
    ledger = ledger_of(tmp_path, "asha", SCORES, reduction=reduction)
    for number, score in enumerate(SCORES):
        # Li et al. 2020: among the best 1/reduction of those that got as far; the first one has nobody to be behind.
        cutoff = np.quantile(SCORES[:number], 1 - 1 / reduction) if number else -np.inf
        assert stops(ledger, number, 10, 100) == (score < cutoff), number


def test_median_stops_what_is_below_the_median_of_at_least_three(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, "median", SCORES)
    for number, score in enumerate(SCORES):
        expected = number >= 3 and score < np.median(SCORES[:number])
        assert stops(ledger, number, 10, 100) == expected, number


@pytest.mark.parametrize("rule", ["asha", "median"])
@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_stopped_and_moves_no_other(
    tmp_path: Path, rule: Literal["asha", "median"], score: float
) -> None:
    without = ledger_of(tmp_path / "without", rule, SCORES)
    scores = [score, *SCORES[:3], score, *SCORES[3:]]
    ledger = ledger_of(tmp_path / "with", rule, scores)
    found = [stops(ledger, number, 10, 100) for number in range(len(scores))]
    assert found[0]
    assert found[4]
    assert found[1:4] + found[5:] == [stops(without, number, 10, 100) for number in range(len(SCORES))]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_member_of_a_population_whose_score_is_not_finite_takes_over_from_another(score: float) -> None:
    scheduler = PopulationBasedTraining(
        time_attr="step",
        metric="score",
        mode="max",
        hyperparam_mutations={"x": [1, 2]},
        quantile_fraction=population.QUANTILE,
    )
    members = [TuneTrial("member", trial_id=f"member-{number}", stub=True) for number in range(4)]
    for member, found in zip(members, [1.0, score, 3.0, 2.0], strict=True):
        state = scheduler._trial_state[member] = _PBTTrialState(member)
        state.last_score = population.rank_score(found)
    assert scheduler._quantiles() == ([members[1]], [members[2]])


def test_a_trial_waits_for_earlier_ones_until_they_have_got_as_far_or_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "POLL_SECONDS", 0.01)
    ledger = ledger_of(tmp_path, "asha", [3.0, 1.0, 2.0])
    for number in (0, 1):
        (ledger.trial_folder(number) / "scores.json").unlink()
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(stops(ledger, 2, 10, 100)))
    waiting.start()
    waiting.join(0.1)
    assert answers == []
    ledger.fail(1, "its process died")
    waiting.join(0.1)
    assert answers == []
    write_json(ledger.trial_folder(0) / "scores.json", {10: {"validation/return": 3.0}})
    waiting.join(5)
    assert answers == [True]
