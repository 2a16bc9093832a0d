"""Population-based training: Ray Tune's, with trials that hand over the checkpoints of their trainings.

All members train to a milestone; the worst quarter then takes over checkpoint and settings of the best, and changes the
settings (Jaderberg et al. 2017). A population whose driver was killed is restored by Tune.
"""

import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import ray.tune
import torch
from ray.tune.schedulers import PopulationBasedTraining

from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.distributed.trials import SweepPlan, Trial
from promptdiffuser.rng import seed_at
from promptdiffuser.sweeps.ledger import trial_name, trial_number
from promptdiffuser.sweeps.space import Choices, Domain, Space
from promptdiffuser.training.checkpoint import newest_valid_checkpoint
from promptdiffuser.training.engine import NonFiniteGradientError

QUANTILE = 0.25
STEP, SCORE = "step", "score"


def run_population(plan: SweepPlan, pool: RolloutPool, concurrency: int, gpus: float) -> None:
    """Train the members of the population to their end, or restore what a killed driver left."""
    ledger, sweep = plan.ledger, plan.ledger.sweep
    while ledger.propose() is not None:
        pass
    members = [{"number": number} | ledger.point(number) for number in range(len(ledger))]
    if all(ledger.has_ended(number) for number in range(len(ledger))):
        return
    storage = ledger.folder / "ray-tune"
    # Tune draws whom a member takes over from, and how it changes, from these.
    random.seed(seed_at(sweep.seed, "population"))
    np.random.seed(seed_at(sweep.seed, "population") % 2**32)  # noqa: NPY002
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(_run_member, plan=plan, pool=pool), {"cpu": 1, "gpu": gpus}
    )
    if ray.tune.Tuner.can_restore(str(storage / "trials")):
        tuner = ray.tune.Tuner.restore(str(storage / "trials"), trainable, resume_errored=True)
    else:
        tuner = ray.tune.Tuner(
            trainable,
            param_space={"member": ray.tune.grid_search(members)},
            tune_config=ray.tune.TuneConfig(
                scheduler=_scheduler(sweep.space, sweep.score_every),
                max_concurrent_trials=concurrency,
                trial_name_creator=lambda trial: trial_name(trial.config["member"]["number"]),
                trial_dirname_creator=lambda trial: trial_name(trial.config["member"]["number"]),
            ),
            run_config=ray.tune.RunConfig(name="trials", storage_path=str(storage), verbose=0),
        )
    results = tuner.fit()
    if results.num_errors:
        raise RuntimeError(f"members of the population failed; the first error was {results.errors[0]}")


def rank_score(score: float) -> float:
    """Return a score as Tune compares members by it: one that is not a finite number is the lowest."""
    return score if math.isfinite(score) else -math.inf


def _scheduler(space: Space, interval: int) -> PopulationBasedTraining:
    def explore(config: dict[str, Any]) -> dict[str, Any]:
        member = config["member"]
        return config | {"member": member | {name: domain.nearest(member[name]) for name, domain in space.items()}}

    return PopulationBasedTraining(
        time_attr=STEP,
        metric=SCORE,
        mode="max",
        perturbation_interval=interval,
        hyperparam_mutations={"member": {field: _mutation(domain) for field, domain in space.items()}},
        quantile_fraction=QUANTILE,
        custom_explore_fn=explore,
        synch=True,  # else what is taken over depends on who happens to be ahead
    )


def _mutation(domain: Domain) -> Any:
    if isinstance(domain, Choices):
        return list(domain.values)
    if domain.whole:
        return ray.tune.randint(int(domain.low), int(domain.high) + 1)
    return (ray.tune.loguniform if domain.log else ray.tune.uniform)(domain.low, domain.high)


def _run_member(config: dict[str, Any], plan: SweepPlan, pool: RolloutPool) -> None:
    torch.set_num_threads(1)
    number = trial_number(ray.tune.get_context().get_trial_name())
    point = {name: value for name, value in config["member"].items() if name != "number"}
    trial = plan.trial(number, point)
    if (handed_over := ray.tune.get_checkpoint()) is not None:
        with handed_over.as_directory() as folder:
            _take_over(Path(folder), trial)
    scores = plan.ledger.scores(number)
    state = "finished"
    reached = _step_of(trial)
    for step in plan.ledger.sweep.milestones(trial.steps):
        if step <= reached:
            continue
        try:
            scores[step] = point | trial.train_and_score(step, pool)
        except NonFiniteGradientError:
            state = "diverged"
            break
        plan.ledger.write_scores(number, scores)
        trial.log(scores)
        ray.tune.report(
            {STEP: step, SCORE: rank_score(scores[step][plan.ledger.sweep.objective])},
            checkpoint=ray.tune.Checkpoint.from_directory(trial.model.parent / "checkpoints"),
        )
    trial.end(scores, state)


def _take_over(checkpoints: Path, trial: Trial) -> None:
    """Continue from the checkpoints of another member, or from its own after an interruption."""
    own = trial.model.parent / "checkpoints"
    shutil.rmtree(own, ignore_errors=True)
    shutil.copytree(checkpoints, own)


def _step_of(trial: Trial) -> int:
    checkpoint = newest_valid_checkpoint(trial.model.parent / "checkpoints")
    return 0 if checkpoint is None else int(checkpoint.documents["progress"]["step"])
