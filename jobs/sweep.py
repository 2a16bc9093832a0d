"""Sweep guidance weight and noise schedule with Ray Tune, scored on validation tasks.

    python jobs/sweep.py quickstart-guidance

The sweep adapts the base experiment's backbone, so dataset and backbone are made first where they are missing; points
that have a result are not run again, so a sweep can be extended: `--guidance-weights 1 2 5 10 20`.
"""

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import collect
import pretrain
import train_diffuser
import tyro
from recipes import SWEEPS, GuidanceSweep
from rich.table import Table
from workspace import JobOptions, Stage, StageRun, Workspace, run_job

from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.distributed.sweeps import Trial, run_trials
from promptdiffuser.distributed.training import TrainJob
from promptdiffuser.methods import get_method
from promptdiffuser.tasks import get_family


@dataclass(frozen=True)
class SweepOptions:
    """Command line of a sweep."""

    sweep: Annotated[GuidanceSweep, tyro.conf.arg(name="")]
    outputs: Path = Path("outputs")
    """Folder below which the experiment writes everything."""


def stage(workspace: Workspace, sweep: GuidanceSweep) -> Stage:
    """Return the sweep stage; its points are folders of their own, named by what they compute."""
    experiment, family = sweep.experiment, get_family(sweep.experiment.family)
    dataset = pretrain.checked_dataset(workspace)
    diffuser = get_method(sweep.method).diffuser
    assert diffuser is not None, "the sweep's configuration has checked it"
    base = train_diffuser.training_of(workspace, diffuser, "multi-task", experiment.diffuser.multi_task)
    points = [
        {"guidance_weight": weight, "schedule": schedule}
        for weight, schedule in itertools.product(sweep.guidance_weights, sweep.schedules)
    ]
    settings = train_diffuser.settings_of(base) | {
        "points": points,
        "method": sweep.method,
        "validation": dataclasses.asdict(experiment.validation),
    }

    def work(run: StageRun) -> None:
        connect(experiment.cluster, trials=sweep.concurrency)
        validation = pretrain.validation_of(dataset, experiment, sweep.method, base.backbone_folder)
        trials = []
        for point in points:
            training = dataclasses.replace(
                base,
                guidance=dataclasses.replace(base.guidance, weight=point["guidance_weight"]),
                diffusion=dataclasses.replace(base.diffusion, schedule=point["schedule"]),
            )
            name = f"weight-{point['guidance_weight']:g}-{point['schedule']}"
            parts = [train_diffuser.settings_of(training), settings["validation"], sweep.method]
            identity = Stage(name, "trial", {"parts": parts}, lambda _: None, "")
            log = run.tracker.run(name, identity.fingerprint, run.run, {"promptdiffuser.stage": "trial"})
            log.log_params(point)
            job = TrainJob(
                training, dataset, family.train_tasks, experiment.quality, workspace.folder_of(identity), log
            )
            trials.append(Trial(name, point, job, validation))
        pool = RolloutPool(family.name, experiment.cluster.rollout_actors, experiment.cluster.gpus_per_actor)
        with run.watch_training([trial.job.folder for trial in trials]):
            run_trials(trials, pool, sweep.concurrency, run.folder)
        pool.close()
        results = [json.loads(trial.result_file.read_text()) for trial in trials]
        (run.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        run.run.log_artifact(run.folder / "results.json")

    return Stage("sweep", "sweep", settings, work, "python jobs/sweep.py")


def _table(results: list[dict[str, Any]], num_tasks: int) -> Table:
    table = Table(title=f"{num_tasks} validation tasks; best first")
    for column in ("guidance weight", "schedule", "mean return", "95 % interval", "normalised"):
        table.add_column(column, justify="right")
    for result in sorted(results, key=lambda result: -result["mean"]):
        table.add_row(
            f"{result['guidance_weight']:g}",
            result["schedule"],
            f"{result['mean']:.1f}",
            f"{result['ci_low']:.1f} to {result['ci_high']:.1f}",
            f"{result['normalised']:.3f}",
        )
    return table


def main(options: SweepOptions) -> None:
    """Make the backbone if needed, run the sweep and print its table."""
    sweep = options.sweep
    with Workspace(JobOptions(sweep.experiment, options.outputs), title=sweep.name, kind="sweep") as workspace:
        workspace.run(collect.stage(workspace))
        workspace.run(pretrain.stage(workspace))
        folder = workspace.run(stage(workspace, sweep))
    results = json.loads((folder / "results.json").read_text())
    workspace.console.print(_table(results, len(get_family(sweep.experiment.family).validation_tasks)))
    workspace.console.print(f"results  {folder / 'results.json'}", soft_wrap=True)


if __name__ == "__main__":
    options = {name: (sweep.__doc__ or "", SweepOptions(sweep())) for name, sweep in SWEEPS.items()}
    run_job(main, __doc__ or "", options)
