"""What a sweep is: a base experiment, a space around it, how it is searched, and what the search may spend."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro

from promptdiffuser.errors import UserError
from promptdiffuser.experiment import Experiment
from promptdiffuser.methods import get_method
from promptdiffuser.methods.adaptation import Method
from promptdiffuser.methods.diffusers import DIFFUSERS
from promptdiffuser.sweeps.proposals import Proposer, Search
from promptdiffuser.sweeps.space import SWEPT, Space, check_space, describe_space, grid, value_of

OBJECTIVES = ("validation/return", "validation/return_low", "validation/normalised")
COSTS = ("cost/gradient_steps", "cost/trained_parameters", "time/seconds")
TRANSFERABLE = (
    "guidance.weight",
    "guidance.initial_weight",
    "guidance.match_norms",
    "guidance.batch_size",
    "denoiser.condition_weight",
    "diffusion.temperature",
    "diffuser.batch_size",
    "diffuser.multi_task.learning_rate",
    "diffuser.multi_task.weight_decay",
    "diffuser.multi_task.clip_norm",
)
"""Fields that may change in the middle of a training: network, noise levels and optimizer state stay what they were."""


@dataclass(frozen=True)
class Sweep:
    """A search around a base experiment, scored on validation tasks.

    Trials train the diffuser of `method` on the base experiment's backbone, or a backbone each if the space names
    fields of `backbone` or `pretraining`.
    """

    name: str
    """Name of the sweep's run in MLflow and of its best configuration."""
    experiment: Experiment
    space: Annotated[Space, tyro.conf.Suppress]
    method: str = "prompt-diffuser-multi-task"
    """Method that the trials are scored with. One that trains on target tasks does so on every validation task; the
    few-shot updates of a diffuser come before a trial's last score alone."""
    search: Search = "grid"
    """grid: every combination, in an order drawn by `seed`. random: drawn one by one. tpe, nsga2: Optuna's, from the
    results so far; nsga2 for return against cost."""
    seed: int = 0
    """Proposals are addressed below this seed; the trainings have the experiment's."""
    trials: int = 0
    """Most trials, earlier ones of the same sweep among them; 0 is no bound, for a grid that is run as a whole."""
    trial_hours: float = 0.0
    """Hours of all trials together after which none is started any more; 0 is no bound."""
    environment_steps: int = 0
    """Steps of validation episodes of all trials after which none is started any more; 0 is no bound."""
    objective: str = "validation/return"
    """What is highest in the best trial: validation/return, validation/return_low (the lower end of its interval) or
    validation/normalised."""
    cost: str = "cost/gradient_steps"
    """What nsga2 sets against it: cost/gradient_steps, cost/trained_parameters or time/seconds."""
    stopping: Literal["none", "asha", "median", "population"] = "none"
    """asha: a trial goes on after a score if it is among the best 1/`reduction` of those that got as far. median: if
    its best score is not below the median of the others' running means. population: trials take over weights and
    settings of better ones (population-based training)."""
    score_every: int = 0
    """Updates until a trial's first score, for `stopping`. median and population score as often again, asha after
    `reduction` times as many."""
    reduction: int = 2
    """asha: the best 1/reduction go on, for reduction times as long."""
    ahead: int = 4
    """Most trials of tpe and nsga2 at a time. A proposal does not look at the scores of the `ahead` - 1 trials before
    it, ended or not, so it does not depend on which of them happens to end first."""
    population: int = 8
    """Trials of a population, of a generation of nsga2, and drawn at random before tpe models what it knows."""
    concurrency: int = 0
    """Trials at a time; 0 is what the cluster has room for."""

    def __post_init__(self) -> None:
        """Refuse what cannot be searched, before anything starts."""
        method = get_method(self.method)
        check_space(self.space, replace(self.experiment, methods=(self.method,)))
        if self.objective.startswith("test/") or self.cost.startswith("test/"):
            raise UserError(
                f"objective {self.objective} and cost {self.cost} must not name test tasks: a sweep chooses on "
                f"validation tasks, its best configuration is tested once by --confirm; known: {', '.join(OBJECTIVES)}"
            )
        for name, value, known in (("objective", self.objective, OBJECTIVES), ("cost", self.cost, COSTS)):
            if value not in known:
                raise UserError(f"{name} {value!r} is unknown; known: {', '.join(known)}")
        for name in ("trials", "trial_hours", "environment_steps", "score_every", "concurrency"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        for name, least in (("reduction", 2), ("ahead", 1), ("population", 2)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.search == "grid":
            grid(self.space)
        elif not (self.trials or self.trial_hours or self.environment_steps):
            raise UserError(f"search {self.search} has no end; set trials, trial_hours or environment_steps")
        if method.diffuser and DIFFUSERS[method.diffuser].learns_optimised_prompts:
            raise UserError(
                f"method {self.method} learns from tuned prompts, which trials do not make; sweep "
                "prompt-diffuser-multi-task, whose diffuser learns alike"
            )
        if self.experiment.diffuser.denoising_steps or "diffuser.denoising_steps" in self.space:
            raise UserError(
                "diffuser.denoising_steps must stay 0 and out of the space: trials do not make the training that it "
                "asks for; diffuser.guidance_start lets the denoising loss train alone at first"
            )
        self._check_cost(method)
        self._check_snapshots(method)
        self._check_effect(method)
        self._check_stopping(method)
        self.proposer()

    def _check_cost(self, method: Method) -> None:
        """Check that trials can differ in the cost that nsga2 compares."""
        trains = method.diffuser is not None or self.trains_backbone
        if self.search == "nsga2" and not trains and self.cost in ("cost/gradient_steps", "cost/trained_parameters"):
            raise UserError(
                f"cost {self.cost} is 0 in every trial, as method {self.method} in this space trains neither "
                "a diffuser nor a backbone; set cost time/seconds"
            )

    def _check_snapshots(self, method: Method) -> None:
        """Check that the trainings of a trial take no snapshots, which nothing would score."""
        trainings = {
            "diffuser.multi_task": method.diffuser is not None,
            "pretraining.optimisation": self.trains_backbone,
        }
        for training, is_made in trainings.items():
            for name, without in (("use", "last"), ("snapshot_every", 0)):
                field = f"{training}.{name}"
                if is_made and (field in self.space or value_of(self.experiment, field) != without):
                    raise UserError(
                        f"{field} must be {without} and out of the space: trials are scored as a whole, not by "
                        "snapshots of their trainings"
                    )

    def _check_effect(self, method: Method) -> None:
        """Refuse fields that decide nothing for the method."""
        effective, fixed = {"backbone", "pretraining", "adaptation"}, set[str]()
        if method.diffuser is not None:
            variant, effective = DIFFUSERS[method.diffuser], set(SWEPT)
            fixed = {f"denoiser.{name}" for name in variant.denoiser} | {
                f"guidance.{name}" for name in variant.guidance
            }
        for field in self.space:
            is_idle = field in fixed or (field.startswith("diffuser.few_shot.") and not method.few_shot_updates)
            is_idle |= field.startswith("adaptation.") and field.split(".")[1] != method.section
            if is_idle or field.split(".")[0] not in effective:
                raise UserError(f"the space names {field!r}, which decides nothing for method {self.method}")

    def _check_stopping(self, method: Method) -> None:
        if self.stopping == "none":
            return
        if not (method.diffuser or self.trains_backbone):
            raise UserError(
                f"stopping {self.stopping} needs trials that train a diffuser or a backbone; set it to none"
            )
        if not self.score_every:
            raise UserError(f"stopping {self.stopping} needs score_every, the updates until the first score")
        if self.search == "nsga2":
            raise UserError("nsga2 compares return and cost of whole trials; set stopping none")
        if self.stopping == "population":
            self._check_population()

    def _check_population(self) -> None:
        if self.trains_backbone:
            raise UserError(
                "stopping population needs trials that hand over checkpoints, and Ray Tune gets none from Ray Train, "
                "which trains the backbones of this space; use asha or median, or sweep fields of the diffuser"
            )
        if stranger := [field for field in self.space if field not in TRANSFERABLE]:
            raise UserError(
                f"stopping population cannot change {stranger[0]!r} in the middle of a training, as trials take over "
                f"each other's checkpoints; it can change {', '.join(TRANSFERABLE)}"
            )
        if self.search != "random" or self.trials != self.population:
            raise UserError("stopping population needs search random, and trials as many as the population")

    @property
    def most_trials(self) -> int | None:
        """Most trials that the sweep can have; None if only what they cost ends it."""
        bounds = [self.trials] if self.trials else []
        if self.search == "grid":
            bounds.append(math.prod(len(domain.extremes) for domain in self.space.values()))
        return min(bounds, default=None)

    def describe(self) -> str:
        """Say what the sweep searches, how many trials it has and what ends it, in a few lines."""
        bounds = [f"{self.trial_hours:g} hours of trials"] if self.trial_hours else []
        bounds += [f"{self.environment_steps} environment steps"] if self.environment_steps else []
        most = self.most_trials
        if self.search == "grid":
            points = math.prod(len(domain.extremes) for domain in self.space.values())
            size = f"grid of {points} points" + ("" if most == points else f", the first {most} of them")
        else:
            size = f"search {self.search}" + ("" if most is None else f", {most} trials")
        until = f", until {' or '.join(bounds)} are spent" if bounds else ""
        return "\n".join([f"sweep {self.name}: {size}{until}", *describe_space(self.space)])

    @property
    def trains_backbone(self) -> bool:
        """Whether every trial pre-trains a backbone of its own, with Ray Train."""
        return any(field.startswith(("backbone.", "pretraining.")) for field in self.space)

    def proposer(self) -> Proposer:
        """Return what proposes the trials' points."""
        both = self.search == "nsga2"
        return Proposer(
            self.space, self.search, self.seed, ("maximize", "minimize") if both else ("maximize",), self.population
        )

    @property
    def objectives(self) -> tuple[str, ...]:
        """What the search is told of a trial."""
        return (self.objective, self.cost) if self.search == "nsga2" else (self.objective,)

    def milestones(self, steps: int) -> list[int]:
        """Return the updates after which a trial of so many is scored; the last one is its end."""
        if self.stopping == "none":
            return [steps]
        factor = self.reduction if self.stopping == "asha" else 1
        found, step = list[int](), self.score_every
        while step < steps:
            found.append(step)
            step = step * factor if factor > 1 else step + self.score_every
        return [*found, steps]
