"""The ledger: budgets, the best trial, spaces that have grown, trials that failed."""

from pathlib import Path
from typing import Any

import pytest

from promptdiffuser.experiment import Experiment
from promptdiffuser.search.ledger import Ledger
from promptdiffuser.search.space import Choices, Space
from promptdiffuser.search.sweep import Sweep

SPACE: Space = {"guidance.weight": Choices((1.0, 2.0, 3.0, 4.0))}


def ledger_of(folder: Path, space: Space = SPACE, **options: Any) -> Ledger:
    return Ledger(folder, Sweep("some", Experiment(name="some"), space, **options))


def end(ledger: Ledger, score: float | None, state: str = "finished") -> None:
    """Propose a trial that ends at once, after half an hour and 100 steps."""
    number = ledger.propose()
    assert number is not None
    costs = {"time/seconds": 1800.0, "cost/environment_steps": 100, "cost/gradient_steps": 10}
    ledger.write_result(number, {"validation/return": score, "state": state} | costs)


@pytest.mark.parametrize("budget", [{"trials": 2}, {"trial_hours": 1.0}, {"environment_steps": 200}])
def test_a_spent_budget_ends_a_sweep_and_a_larger_one_extends_it(tmp_path: Path, budget: dict[str, Any]) -> None:
    ledger = ledger_of(tmp_path, **budget)
    for _ in range(2):
        end(ledger, -1.0)
    assert ledger.propose() is None
    assert ledger.left() == []
    larger = ledger_of(tmp_path, **{name: 2 * value for name, value in budget.items()})
    assert larger.left() == [2]


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
    (number,) = ledger.left()
    ledger.fail(number, "out of memory")
    assert ledger.has_ended(number)
    assert ledger.failures() == {0: "out of memory"}
    assert ledger.left() == [0]
    assert not ledger.has_ended(number)
