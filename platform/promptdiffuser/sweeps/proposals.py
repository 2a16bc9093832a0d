"""Which point a sweep tries next: a function of the seed, the number of the trial, and what it may know of the others.

Nothing is consumed from a shared stream and nothing depends on which trial happens to end first, so a sweep that was
killed proposes the same points when it goes on, on a cluster of another size too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from promptdiffuser.errors import UserError
from promptdiffuser.rng import numpy_generator, seed_at
from promptdiffuser.sweeps.space import Choices, Point, Range, Space, Value, draw, grid, holds

Search = Literal["grid", "random", "tpe", "nsga2"]
ATTEMPTS = 100
"""Draws for a point that no trial has had; a small space may have none left."""


@dataclass(frozen=True)
class Known:
    """What a proposal knows of an earlier trial."""

    point: Point
    scores: tuple[float, ...] | None
    """Its objectives, not finite if it has no score; None if it has not ended, or is too recent to be looked at."""
    stopped_at: int | None = None
    """Updates after which it was stopped early."""
    notes: dict[str, Any] | None = None
    """What the searcher noted when it proposed the point."""


@dataclass(frozen=True)
class Proposal:
    """A point to try, with what the searcher wants to be told again about it."""

    point: Point
    notes: dict[str, Any]


@dataclass(frozen=True)
class Proposer:
    """Proposes points of a space that no trial has had."""

    space: Space
    search: Search
    seed: int
    directions: tuple[Literal["maximize", "minimize"], ...] = ("maximize",)
    """Of the objectives."""
    population: int = 8
    """Trials that tpe draws at random first, and of a generation of nsga2."""

    def __post_init__(self) -> None:
        """Refuse, before anything starts, a search that cannot work."""
        if self.search in ("tpe", "nsga2"):
            load_optuna(f"search {self.search}")

    def propose(self, known: Sequence[Known]) -> Proposal | None:
        """Return the point of trial number `len(known)`, or None when the space holds no further one."""
        tried, notes = [trial.point for trial in known], dict[str, Any]()
        if self.search == "grid":
            left = [point for point in grid(self.space) if point not in tried]
            # Not from the lowest values to the highest: stopping rules compare a trial with the ones before it.
            first = min(left, key=lambda point: seed_at(self.seed, "grid", *map(str, point.values())), default=None)
            return None if first is None else Proposal(first, {})
        if self.search != "random":
            proposal = self._by_optuna(known)
            if proposal.point not in tried:
                return proposal
            # A generation of nsga2 counts what takes the place of a point that it had before.
            notes = proposal.notes if self.search == "nsga2" else {}
        generator = numpy_generator(self.seed, "sweep", len(known))
        points = (draw(self.space, generator) for _ in range(ATTEMPTS))
        return next((Proposal(point, notes) for point in points if point not in tried), None)

    def _by_optuna(self, known: Sequence[Known]) -> Proposal:
        """Ask a fresh study that is told of the earlier trials in their order."""
        optuna, seed = load_optuna(f"search {self.search}"), seed_at(self.seed, "sweep", len(known)) % 2**32
        sampler = (
            optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.population)
            if self.search == "tpe"
            else optuna.samplers.NSGAIISampler(seed=seed, population_size=self.population)
        )
        study = optuna.create_study(directions=self.directions, sampler=sampler)
        distributions = {field: _distribution(optuna, domain) for field, domain in self.space.items()}
        for trial in known:
            if holds(self.space, trial.point):
                study.add_trial(_told(optuna, trial, distributions))
        asked = study.ask(distributions)
        point: dict[str, Value] = {field: asked.params[field] for field in self.space}
        return Proposal(point, dict(study.trials[-1].system_attrs))


def load_optuna(purpose: str) -> ModuleType:
    """Return Optuna, which an extra installs; raises `UserError` that names the purpose and the extra without it."""
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"{purpose} needs optuna; install it by pip install 'promptdiffuser[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(optuna: ModuleType, domain: Choices | Range) -> Any:
    if isinstance(domain, Choices):
        return optuna.distributions.CategoricalDistribution(domain.values)
    if domain.whole:
        return optuna.distributions.IntDistribution(domain.low, domain.high, log=domain.log)
    return optuna.distributions.FloatDistribution(domain.low, domain.high, log=domain.log)


def _told(optuna: ModuleType, trial: Known, distributions: dict[str, Any]) -> Any:
    """Return a trial as the study takes it: running, failed, stopped at an intermediate score, or complete."""
    told: dict[str, Any] = {
        "params": {field: trial.point[field] for field in distributions},
        "distributions": distributions,
        "system_attrs": trial.notes or {},
    }
    states = optuna.trial.TrialState
    if trial.scores is None:
        return optuna.trial.create_trial(state=states.RUNNING, **told)
    if not all(map(math.isfinite, trial.scores)):
        return optuna.trial.create_trial(state=states.FAIL, **told)
    if trial.stopped_at is not None:
        return optuna.trial.create_trial(
            state=states.PRUNED, intermediate_values={trial.stopped_at: trial.scores[0]}, **told
        )
    return optuna.trial.create_trial(values=list(trial.scores), **told)
