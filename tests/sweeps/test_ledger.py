"""The ledger: budgets, the best trial, spaces that have grown, trials that failed."""

import math
from pathlib import Path
from typing import Any

import pytest

from promptdiffuser.experiment import Experiment
from promptdiffuser.sweeps.ledger import Ledger
from promptdiffuser.sweeps.space import Choices, Range, Space
from promptdiffuser.sweeps.sweep import Sweep

COSTS = {"time/seconds": 1800.0, "cost/environment_steps": 100, "cost/gradient_steps": 10}
SPACE: Space = {"guidance.weight": Choices((1.0, 2.0, 3.0, 4.0))}


def ledger_of(folder: Path, space: Space = SPACE, **options: Any) -> Ledger:
    return Ledger(folder, Sweep("some", Experiment(name="some"), space, **options))


def end(ledger: Ledger, score: float | None, state: str = "finished") -> None:
    """Propose a trial that ends at once, after half an hour and 100 steps."""
    number = ledger.propose()
    assert number is not None
    ledger.write_result(number, COSTS | {"validation/return": score, "state": state})


@pytest.mark.parametrize("budget", [{"trials": 2}, {"trial_hours": 1.0}, {"environment_steps": 200}])
def test_a_spent_budget_ends_a_sweep_and_a_larger_one_extends_it(tmp_path: Path, budget: dict[str, Any]) -> None:
    ledger = ledger_of(tmp_path, **budget)
    for _ in range(2):
        end(ledger, -1.0)
    assert ledger.propose() is None
    assert ledger.is_finished()
    larger = ledger_of(tmp_path, **{name: 2 * value for name, value in budget.items()})
    assert not larger.is_finished()
    assert larger.propose() == 2


def test_the_best_trial_is_one_that_was_trained_to_its_end(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    assert ledger.best() is None
    for score, state in ((-1.0, "stopped"), (None, "diverged"), (-3.0, "finished"), (-2.0, "finished")):
        end(ledger, score, state)
    best = ledger.best()
    assert best is not None
    assert (best["trial"], best["validation/return"]) == ("trial-0003", -2.0)


def test_a_field_that_is_new_has_the_base_experiments_value_in_older_trials(tmp_path: Path) -> None:
    end(ledger_of(tmp_path), -1.0)
    grown = ledger_of(tmp_path, SPACE | {"diffusion.temperature": Choices((0.5, 1.0))})
    (row,) = grown.rows()
    assert row["diffusion.temperature"] == 1.0
    points = [grown.point(number) for number in iter(grown.propose, None)]
    assert len(points) == 7  # all of the grown grid but the one that was there
    assert grown.point(0) not in points


def test_a_failed_trial_keeps_nobody_waiting_and_runs_again(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    assert ledger.propose() == 0
    ledger.fail(0, "out of memory")
    assert ledger.has_ended(0)
    assert ledger.failures() == {0: "out of memory"}
    assert ledger.unended() == [0]
    ledger.forget_failures()
    assert ledger.unended() == [0]
    assert not ledger.has_ended(0)


def test_questions_write_nothing(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, trials=3)
    end(ledger, -1.0)
    assert ledger.propose() == 1
    ledger.fail(1, "out of memory")

    def files() -> dict[Path, str]:
        return {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}

    before = files()
    assert not ledger.is_finished()
    assert ledger.unended() == [1]
    assert ledger.next_proposal() is not None
    assert ledger.best() is not None
    assert files() == before


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_never_the_best(tmp_path: Path, score: float) -> None:
    ledger = ledger_of(tmp_path)
    end(ledger, score)
    assert ledger.best() is None
    end(ledger, -2.0)
    end(ledger, score)
    best = ledger.best()
    assert best is not None
    assert best["trial"] == "trial-0001"


@pytest.mark.parametrize("search", ["tpe", "nsga2"])
def test_a_trial_without_a_finite_score_blocks_no_search(tmp_path: Path, search: str) -> None:
    space: Space = {"guidance.weight": Range(0.0, 10.0)}
    ledger = ledger_of(tmp_path, space, search=search, trials=12, population=2, ahead=1)
    scores = [math.nan, -1.0, None, -2.0, -math.inf, -3.0, math.inf, -1.5, -1.0]
    for number, score in enumerate(scores):
        end(ledger, score, "diverged" if score is None else "finished")
        assert len(ledger) == number + 1


def test_a_trial_that_differs_in_a_dropped_field_says_so_and_is_no_point_of_the_space(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, SPACE | {"diffusion.temperature": Choices((0.5, 1.0))})
    while (number := ledger.propose()) is not None:
        ledger.write_result(number, COSTS | ledger.point(number) | {"validation/return": -1.0, "state": "finished"})
    assert len(ledger) == 8
    smaller = ledger_of(tmp_path, SPACE)
    points = [smaller.point(number) for number in range(8)]
    assert sum("diffusion.temperature" in point for point in points) == 4
    assert all(point.get("diffusion.temperature", 0.5) == 0.5 for point in points)
    # What was tried with the base experiment's temperature is not tried again.
    assert smaller.is_finished()
