"""Search around an experiment with Ray Tune, scored on validation tasks; the best is confirmed once on test tasks.

    promptdiffuser sweep quickstart-guidance --confirm
    promptdiffuser sweep quickstart-guidance --space guidance.weight=0,1,5,10,20 --trials 12

The base experiment's dataset and backbone are made first where they are missing. The same command continues a sweep
that was interrupted; with more trials, or a larger space, it extends a finished one. Trials that have ended never run
again.
"""

import dataclasses
import math
from typing import Any

import pandas as pd
from rich.table import Table

from promptdiffuser.background import repeatedly
from promptdiffuser.console import Reporter, print_table, with_interval
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.sweeps import run_sweep
from promptdiffuser.distributed.trials import SUMMARISED, SweepPlan
from promptdiffuser.errors import UserError
from promptdiffuser.evaluation.summary import read_summary
from promptdiffuser.experiment import Experiment
from promptdiffuser.files import locked
from promptdiffuser.keys import deciding, fingerprint
from promptdiffuser.methods import get_method
from promptdiffuser.pipeline.experiment_graph import Base, base_of
from promptdiffuser.pipeline.graph import Graph, check_names
from promptdiffuser.pipeline.options import JobOptions, SweepOptions
from promptdiffuser.pipeline.run import run_experiment
from promptdiffuser.pipeline.session import POLL_SECONDS, Session
from promptdiffuser.pipeline.stages.evaluate import SUMMARY
from promptdiffuser.pipeline.work.pretrain import validation_of
from promptdiffuser.rng import SIMULATOR_SEEDS, seed_at
from promptdiffuser.sweeps.ledger import Ledger, Row, trial_number
from promptdiffuser.sweeps.space import apply, change_space, value_of
from promptdiffuser.sweeps.sweep import Sweep
from promptdiffuser.tasks import get_family
from promptdiffuser.tracking.system import system_metrics
from promptdiffuser.training.checkpoint import write_json

VERSION = 1


def main(options: SweepOptions) -> None:
    """Make the backbone if needed, run the sweep, write and print its table, and confirm its best."""
    job, sweep, base = _base(options)
    check_names(base.stages, "--rerun", options.rerun)
    with Session(job, sweep.name, "sweep", identity_of(sweep)) as session:
        session.console.print(sweep.describe(), markup=False, highlight=False, soft_wrap=True)
        if sweep.trains_backbone:  # refused before anything is collected, and the local cluster has a dashboard
            connect(sweep.experiment.cluster, validates=True, dashboard=True)
        session.make(base.stages)
        plan = plan_of(session, sweep, base)
        run(session, plan)
        best = write_results(plan, session)
        if options.confirm:
            confirm(plan, session, options, session.store.product(base.dataset), best)


def _base(options: SweepOptions) -> tuple[JobOptions, Sweep, Base]:
    """Return the base experiment's options, the sweep with the space that was asked for, and what it starts from."""
    sweep = dataclasses.replace(options.sweep, space=change_space(options.sweep.space, options.space))
    job = JobOptions(
        sweep.experiment, options.outputs, options.dataset, options.backbone_checkpoint, rerun=options.rerun
    )
    return job, sweep, base_of(job, () if sweep.trains_backbone else (get_method(sweep.method).backbone,))


def base_graph(options: SweepOptions) -> Graph:
    """Return the stages that a sweep makes before its trials."""
    return Graph(_base(options)[2].stages)


def identity_of(sweep: Sweep) -> dict[str, Any]:
    """Return what makes it another sweep, besides the base experiment; more trials and larger spaces do not."""
    identity: dict[str, Any] = {name: getattr(sweep, name) for name in ("method", "stopping")}
    if sweep.stopping != "none":
        identity |= {name: getattr(sweep, name) for name in ("score_every", "reduction", "objective")}
    if sweep.stopping == "population":
        # Its members depend on each other from the start, so it cannot grow.
        identity |= {"space": dataclasses.asdict(sweep)["space"], "seed": sweep.seed, "population": sweep.population}
    return {"sweep": identity}


def plan_of(session: Session, sweep: Sweep, base: Base) -> SweepPlan:
    """Return the sweep with its folder, its data and its backbone."""
    experiment = session.experiment
    dataset = session.dataset(base.dataset, experiment)
    settings: list[Any] = [VERSION, sweep.name, deciding(experiment), identity_of(sweep), dataset.manifest.digest]
    backbone_folder, backbone = session.folder, experiment.backbone
    if not sweep.trains_backbone:
        (frozen,) = base.backbones.values()
        backbone_folder, backbone = session.product(frozen.node), frozen.config
        settings.append(session.store.content(frozen.node))
    return SweepPlan(
        Ledger(session.folder / f"sweep-{fingerprint(settings)[:8]}", sweep),
        dataset,
        validation_of(dataset, experiment, sweep.method, backbone_folder),
        backbone_folder,
        backbone,
        session.own.tracker,
        session.own.log,
    )


def run(session: Session, plan: SweepPlan) -> None:
    """Run what is left of the sweep, if anything is, showing how many trials have ended."""
    ledger = plan.ledger
    lock = ledger.folder.with_name(f".{ledger.folder.name}.lock")
    with locked(lock, lambda owner: session.console.print(f"waits for {owner}", highlight=False)):
        _run_what_is_left(session, plan)


def _run_what_is_left(session: Session, plan: SweepPlan) -> None:
    ledger, sweep = plan.ledger, plan.ledger.sweep
    ended = len(ledger.rows())
    session.console.print(f"{ended} {'trial has' if ended == 1 else 'trials have'} ended before", highlight=False)
    if ledger.is_finished():
        return
    connect(sweep.experiment.cluster, trials=max(1, sweep.concurrency), dashboard=sweep.trains_backbone)
    reporter = Reporter(f"sweep {sweep.name}", session.console)

    def look() -> None:
        reporter.expect(max(sweep.most_trials or 0, len(ledger)), len(ledger.rows()))

    with system_metrics(plan.parent), reporter.showing(), repeatedly(look, POLL_SECONDS):
        run_sweep(plan)


def write_results(plan: SweepPlan, session: Session) -> Row | None:
    """Write the table and the best configuration, keep both with the sweep's run, and print them."""
    ledger, sweep = plan.ledger, plan.ledger.sweep
    rows, best = ledger.rows(), ledger.best()
    for row in rows:
        if not plan.tracker.has_run(row["run"]):  # a store that does not know the sweep
            number = trial_number(row["trial"])
            trial = plan.trial(number, ledger.point(number))
            trial.log(ledger.scores(number))
            trial.end(ledger.scores(number), row["state"])
    rows = ledger.rows()
    write_json(ledger.folder / "results.json", rows)
    pd.DataFrame(rows).to_parquet(ledger.folder / "results.parquet", index=False)
    write_json(ledger.folder / "sweep.json", dataclasses.asdict(sweep) | {"best": best})
    names = ["results.json", "results.parquet", "sweep.json"]
    if best is not None:
        (ledger.folder / "best.json").write_text(best_experiment(ledger, best).to_json())
        plan.parent.log_metrics({name: best[name] for name in SUMMARISED})
        plan.parent.set_tag("promptdiffuser.best", best["trial"])
        names.append("best.json")
    for name in names:
        plan.parent.log_artifact(ledger.folder / name)
    num_tasks = len(get_family(sweep.experiment.family).validation_tasks)
    print_table(session.console, table(ledger, rows, num_tasks))
    for name in names:
        session.console.print(f"{name:<16} {ledger.folder / name}", soft_wrap=True)
    return best


def best_experiment(ledger: Ledger, row: Row) -> Experiment:
    """Return the experiment of a trial, for `promptdiffuser run --from-file`."""
    sweep = ledger.sweep
    # A member of a population ends with other values than it began with.
    experiment = apply({field: row[field] for field in ledger.point(trial_number(row["trial"]))}, sweep.experiment)
    return dataclasses.replace(experiment, name=f"{sweep.name}-best", methods=(sweep.method,))


def confirm(plan: SweepPlan, session: Session, options: SweepOptions, dataset: str, best: Row | None) -> None:
    """Run the pipeline on the best configuration with seeds that no trial had; the sweep's run gets its test result."""
    sweep = plan.ledger.sweep
    if best is None:
        raise UserError(f"no trial was trained to its end with a finite {sweep.objective}, so nothing can be confirmed")
    experiment = best_experiment(plan.ledger, best)
    seed = seed_at(experiment.seed, "confirm") % SIMULATOR_SEEDS
    fresh = dataclasses.replace(
        experiment,
        name=f"{sweep.name}-confirmed",
        seed=seed,
        evaluation=dataclasses.replace(experiment.evaluation, seed=seed),
    )
    backbone = None if sweep.trains_backbone else plan.backbone_folder
    results = run_experiment(JobOptions(fresh, options.outputs, dataset, backbone))
    summary = read_summary((results / SUMMARY).read_text())
    result = summary["methods"][sweep.method]
    confirmed = {
        "test/return": result["mean"],
        "test/return_low": result["ci_low"],
        "test/return_high": result["ci_high"],
        "test/normalised": result["normalised"],
    }
    write_json(plan.ledger.folder / "confirmed.json", {"trial": best["trial"], "seed": seed} | confirmed)
    plan.parent.log_metrics({name: math.nan if value is None else value for name, value in confirmed.items()})
    plan.parent.log_artifact(plan.ledger.folder / "confirmed.json")
    session.console.print(
        f"{best['trial']} confirmed on {len(summary['test_tasks'])} test tasks: "
        f"{with_interval(result['mean'], result['ci_low'], result['ci_high'])}; "
        f"validation {best['validation/return']:.1f}"
    )


def table(ledger: Ledger, rows: list[Row], num_tasks: int) -> Table:
    """Return the trials, the best first; those that were stopped, then those that diverged come last."""
    sweep, states = ledger.sweep, ("finished", "stopped", "diverged")
    # Earlier trials may differ in fields that were dropped since.
    points = [ledger.point(trial_number(row["trial"])) for row in rows]
    fields = dict.fromkeys([*sweep.space, *(field for point in points for field in point)])
    shown = Table(title=f"{sweep.name}: {num_tasks} validation tasks, best first")
    for column in ("trial", *fields, "return (95 % int.)", "normalised", "updates", "state"):
        shown.add_column(column, justify="right")

    def rank(row: Row) -> tuple[int, float]:
        score = row[sweep.objective]
        return states.index(row["state"]), -score if score is not None and math.isfinite(score) else math.inf

    for row in sorted(rows, key=rank):
        mean, low, high, normalised = (row[name] for name in SUMMARISED)
        scores = ("", "") if mean is None else (with_interval(mean, low, high), f"{normalised:.3f}")
        values = (row.get(field, value_of(sweep.experiment, field)) for field in fields)
        swept = (f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        number = str(trial_number(row["trial"]))
        shown.add_row(number, *swept, *scores, str(row["cost/gradient_steps"]), row["state"])
    return shown
