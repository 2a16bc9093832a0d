"""Running the trials of a sweep with Ray Tune, each a plain Tune function, scored by a shared pool of rollout actors.

What is tried next, and what was found, is in the sweep's `Ledger`; Tune gets the numbers of the trials and runs them.
So the same call starts a sweep, continues one whose driver was killed, and extends a finished one.
"""

import os
import shutil
from typing import Any

import ray
import ray.tune
import torch
from ray.tune.search import Searcher

from promptdiffuser.distributed.population import run_population
from promptdiffuser.distributed.rollouts import BLOCKS_IN_FLIGHT, RolloutPool
from promptdiffuser.distributed.trials import SweepPlan
from promptdiffuser.errors import UserError
from promptdiffuser.sweeps.ledger import Ledger, trial_name
from promptdiffuser.sweeps.sweep import Sweep

WAITING_TRIAL_BYTES = 2**29
"""Memory of a trial that waits for its Train workers; Tune wants a trial to take something."""
PROCESS_FAILURES = 2
"""Deaths of a trial's process after which the trial has failed."""


def cpus_of_trial(sweep: Sweep) -> int:
    """Return the CPUs that a trial takes: its own process's, or those of its Train workers and what reads for them."""
    cluster = sweep.experiment.cluster
    return cluster.train_workers * cluster.cpus_per_worker + 1 if sweep.trains_backbone else 1


def concurrency_of(sweep: Sweep, available: dict[str, float]) -> int:
    """Return how many trials run at a time beside the rollout actors.

    Raises:
        UserError: There is no room for one, or for as many as were asked for.
    """
    cluster = sweep.experiment.cluster
    cpus, gpus = cpus_of_trial(sweep), _gpus_of_trial(sweep)
    room = [int((available.get("CPU", 0) - cluster.rollout_actors) // cpus)]
    if gpus:
        room.append(int((available.get("GPU", 0) - cluster.rollout_actors * cluster.gpus_per_actor + 1e-6) // gpus))
    if min(room) < max(1, sweep.concurrency):
        asked = max(1, sweep.concurrency)
        raise UserError(
            f"{asked} trials at a time need {asked * cpus} CPUs and {asked * gpus:g} GPUs beside "
            f"{cluster.rollout_actors} rollout actors, the Ray cluster has {available.get('CPU', 0):g} and "
            f"{available.get('GPU', 0):g}; lower --concurrency or --experiment.cluster.rollout-actors"
        )
    at_once = sweep.concurrency or min(room)
    return min(at_once, sweep.ahead) if sweep.search in ("tpe", "nsga2") else at_once


def run_sweep(plan: SweepPlan) -> None:
    """Run every trial that has not ended, until space or budget is exhausted.

    Raises:
        UserError: The cluster has no room for a trial.
        RuntimeError: Naming the trials that failed; the others have their results.
    """
    ledger, sweep = plan.ledger, plan.ledger.sweep
    concurrency = concurrency_of(sweep, ray.cluster_resources())
    cluster = sweep.experiment.cluster
    # A trial's block may wait behind those that every other trial has handed to the same actor.
    limit = cluster.block_limit_s * (1 + BLOCKS_IN_FLIGHT * (concurrency - 1))
    pool = RolloutPool(sweep.experiment.family, cluster.rollout_actors, cluster.gpus_per_actor, limit)
    try:
        if sweep.stopping == "population":
            run_population(plan, pool, concurrency, _gpus_of_trial(sweep))
        else:
            _run_trials(plan, pool, concurrency)
    finally:
        pool.close()
    if failures := ledger.failures():
        number, error = next(iter(failures.items()))
        raise RuntimeError(
            f"trials failed: {', '.join(map(trial_name, failures))}; the same command runs them again; "
            f"{trial_name(number)} failed with {error}"
        )


def _run_trials(plan: SweepPlan, pool: RolloutPool, concurrency: int) -> None:
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # whose silence is a table of its settings
    storage = plan.ledger.folder / "ray-tune"
    shutil.rmtree(storage, ignore_errors=True)  # the ledger knows more than it
    trainable = ray.tune.with_parameters(_run_trial, plan=plan, pool=pool)
    if plan.ledger.sweep.trains_backbone:  # its Train workers bring their own; the trial waits for them
        resources = {"cpu": 0.0, "memory": float(WAITING_TRIAL_BYTES)}
    else:
        resources = {"cpu": 1.0, "gpu": _gpus_of_trial(plan.ledger.sweep)}
    ray.tune.Tuner(
        ray.tune.with_resources(trainable, resources),
        tune_config=ray.tune.TuneConfig(
            search_alg=_Numbers(plan.ledger), num_samples=-1, max_concurrent_trials=concurrency
        ),
        run_config=ray.tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            failure_config=ray.tune.FailureConfig(max_failures=PROCESS_FAILURES),
            callbacks=[_Failures(plan.ledger)],
            verbose=0,
        ),
    ).fit()


class _Numbers(Searcher):
    """Gives Tune the numbers of the trials to run: those that an earlier command left behind, then new ones."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        ledger.forget_failures()
        self._ledger, self._unended = ledger, ledger.unended()

    def suggest(self, trial_id: str) -> Any:
        """Return a trial's number, None to be asked again, or that there is no further one."""
        if self._unended:
            number: int | None = self._unended.pop(0)
        elif not self._ledger.can_propose():
            return None
        else:
            number = self._ledger.propose()
        return Searcher.FINISHED if number is None else {"number": number}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn nothing from Tune: the ledger has the results."""

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the ledger has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Need nothing: the ledger has it."""


class _Failures(ray.tune.Callback):
    """Tells the ledger of trials whose process died too often."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Let nobody wait for the trial."""
        number = trial.config["number"]
        if not self._ledger.has_ended(number):
            self._ledger.fail(number, f"its process died {PROCESS_FAILURES + 1} times")


def _run_trial(config: dict[str, int], plan: SweepPlan, pool: RolloutPool) -> None:
    torch.set_num_threads(1)
    number = config["number"]
    try:
        plan.trial(number, plan.ledger.point(number)).run_to_end(pool)
    except Exception as error:  # the others go on; the driver names it when they have ended
        plan.ledger.fail(number, f"{type(error).__name__}: {error}")
    ray.tune.report({"ended": True})


def _gpus_of_trial(sweep: Sweep) -> float:
    """Return the share of a GPU of a trial's own process, or all that its Train workers take."""
    cluster = sweep.experiment.cluster
    if sweep.trains_backbone:
        return cluster.train_workers * cluster.gpus_per_worker
    return cluster.gpus_per_task
