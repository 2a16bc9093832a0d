"""Proposals depend on the seed and on the trials that they may know, not on what else has happened."""

import dataclasses
import math
import sys

import pytest

from promptdiffuser.errors import UserError
from promptdiffuser.sweeps.proposals import Known, Proposer, Search
from promptdiffuser.sweeps.space import Choices, Point, Range, Space, holds

SPACE: Space = {"x": Range(0.0, 10.0), "kind": Choices(("a", "b")), "n": Range(1, 5)}


def score(point: Point) -> tuple[float, ...]:
    """Return a score that is best at x = 3 with kind b."""
    return (-abs(float(point["x"]) - 3) - (point.get("kind") == "a"),)


def search(proposer: Proposer, trials: int, ahead: int = 1) -> list[Known]:
    """Run a search whose trials end at once; the last `ahead` - 1 are not looked at."""
    known: list[Known] = []
    for number in range(trials):
        seen = [
            trial if earlier + ahead <= number else Known(trial.point, None, notes=trial.notes)
            for earlier, trial in enumerate(known)
        ]
        proposal = proposer.propose(seen)
        assert proposal is not None
        costs = (float(proposal.point["n"]),) if len(proposer.directions) == 2 else ()
        known.append(Known(proposal.point, score(proposal.point) + costs, notes=proposal.notes))
    return known


@pytest.mark.parametrize("name", ["random", "tpe", "nsga2"])
def test_proposals_are_reproducible_differ_by_seed_and_lie_in_the_space(name: Search) -> None:
    directions = ("maximize", "minimize") if name == "nsga2" else ("maximize",)
    first, again, other = (
        [trial.point for trial in search(Proposer(SPACE, name, seed, directions, 4), 12, ahead=3)] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert all(holds(SPACE, point) for point in first)
    assert len({str(point) for point in first}) == 12


def test_tpe_finds_more_than_chance() -> None:
    def best_of_last(name: Search) -> float:
        return sum(trial.scores[0] for trial in search(Proposer(SPACE, name, 0), 40)[-15:] if trial.scores) / 15

    assert best_of_last("tpe") > best_of_last("random") + 1


def test_nsga2_forms_generations() -> None:
    known = search(Proposer(SPACE, "nsga2", 0, ("maximize", "minimize"), 4), 14)
    generations = [trial.notes["NSGAIISampler:generation"] for trial in known if trial.notes]
    assert generations == [number // 4 for number in range(14)]


def test_a_stopped_trial_is_told_with_the_score_it_reached() -> None:
    known = search(Proposer(SPACE, "tpe", 0, population=4), 8)
    stopped = [Known(t.point, t.scores, 100 if number % 2 else None, t.notes) for number, t in enumerate(known)]
    assert Proposer(SPACE, "tpe", 0, population=4).propose(stopped) is not None


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_a_score_that_is_not_finite_counts_as_a_failed_trial(name: Search, score: float) -> None:
    directions = ("maximize", "minimize") if name == "nsga2" else ("maximize",)
    proposer = Proposer(SPACE, name, 0, directions, 4)
    known = search(proposer, 8)
    broken = [
        dataclasses.replace(trial, scores=(score, *trial.scores[1:]) if number % 2 else trial.scores)
        for number, trial in enumerate(known)
        if trial.scores
    ]
    proposal = proposer.propose(broken)
    assert proposal is not None
    assert holds(SPACE, proposal.point)


def test_an_extended_grid_proposes_what_is_new_and_ends() -> None:
    small, large = ({"x": Choices(values)} for values in ((1, 2), (1, 2, 3)))
    known = search(Proposer(small, "grid", 0), 2)
    assert Proposer(small, "grid", 0).propose(known) is None
    proposal = Proposer(large, "grid", 0).propose(known)
    assert proposal is not None
    assert proposal.point == {"x": 3}


def test_a_space_without_a_further_point_ends_the_search() -> None:
    known = search(Proposer({"x": Choices((1, 2))}, "random", 0), 2)
    assert Proposer({"x": Choices((1, 2))}, "random", 0).propose(known) is None


def test_optuna_is_asked_for_by_name_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"search tpe needs optuna.*promptdiffuser\[search\]"):
        Proposer(SPACE, "tpe", 0)
