"""Compare methods on equal terms: methods x families x seeds x sizes of the few-shot set, in one table a family.

    python jobs/benchmark.py cheetah-vel-methods
    python jobs/benchmark.py cheetah-vel-methods --seeds 1 2 --few-shot-episodes 1 5 25

Dataset and backbones are made once. Diffusers of all seeds are trained side by side, a core each, then every method
adapts to every test task, then all are evaluated. What is finished is kept: run again after a kill, or with more
seeds or methods, the same command makes only what is missing.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from promptdiffuser.console import known, print_table, with_interval
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.training import train_apart
from promptdiffuser.evaluation.scores import FLOORS, reference_scores
from promptdiffuser.pipeline.options import BenchmarkOptions, JobOptions
from promptdiffuser.pipeline.session import Stage, StageRun, Workspace, fingerprint_of, status_of
from promptdiffuser.pipeline.stages import adapt, collect, evaluate, pretrain, train_diffuser
from promptdiffuser.recipes.benchmarks import Benchmark, BenchmarkCell
from promptdiffuser.reporting.benchmark import write_tables
from promptdiffuser.reporting.benchmark_page import write_page
from promptdiffuser.tasks import get_family
from promptdiffuser.training.trainings import DiffuserTraining

EPISODES = "episodes.parquet"
COSTS = "costs.json"
STAGES = ("collect", "denoising", "diffusers", "adaptations", "adapt", "evaluations", "evaluate", "benchmark")
CELLS_AT_A_TIME = 40
"""Cells whose policies are with the actors at a time."""


@dataclass(frozen=True)
class PlacedCell:
    """A cell with its runs and folders."""

    cell: BenchmarkCell
    workspace: Workspace


def place(base: Workspace, benchmark: Benchmark) -> list[PlacedCell]:
    """Return the benchmark's cells of a family below its run."""
    placed = []
    for cell in benchmark.cells(base.experiment.family):
        title = " ".join(
            filter(None, [base.title, cell.arm, f"seed {cell.seed}", f"{cell.few_shot_episodes} episodes"])
        )
        options = JobOptions(cell.experiment, base.options.outputs, rerun=base.options.rerun)
        placed.append(PlacedCell(cell, Workspace(options, title, base=base, console=base.console)))
    return placed


Trainings = dict[Path, tuple[Workspace, Stage, DiffuserTraining]]
"""Folder -> a diffuser's training and the experiment that it is logged below; experiments may share one."""


def trainings_of(
    workspaces: list[Workspace],
    stage_of: Callable[[Workspace, str], Stage],
    training_of: Callable[[Workspace, str], DiffuserTraining],
) -> Trainings:
    """Return one training of each diffuser that the experiments need."""
    return {
        workspace.folder_of(stage): (workspace, stage, training_of(workspace, diffuser))
        for workspace in workspaces
        for diffuser in train_diffuser.diffusers(workspace)
        for stage in [stage_of(workspace, diffuser)]
    }


def train_side_by_side(base: Workspace, name: str, trainings: Trainings) -> None:
    """Make trainings side by side; then each has its own stage's place in MLflow and on storage too."""
    if trainings:
        base.run(trainings_stage(base, name, trainings))
    for workspace, stage, _ in trainings.values():
        workspace.run(stage)  # finds its work done


def trainings_stage(base: Workspace, name: str, trainings: Trainings) -> Stage:
    """Return the stage that makes trainings side by side."""

    def work(run: StageRun) -> None:
        jobs = [job for each in trainings.values() if (job := train_diffuser.job_apart(*each)) is not None]
        if jobs:
            cluster = base.experiment.cluster
            connect(cluster)
            try:
                with run.watch_training([job.folder for job in jobs]):
                    for job in train_apart(jobs, num_gpus=cluster.gpus_per_task):
                        job.run.finish()
            except BaseException as error:
                for job in jobs:
                    job.run.finish("FINISHED" if (job.folder / "model").is_dir() else status_of(type(error)))
                raise

    return Stage(name, "train-diffuser", {"folders": sorted(f.name for f in trainings)}, work, base.command)


def adaptations_stage(base: Workspace, cells: list[PlacedCell]) -> Stage:
    """Return the stage that adapts by all methods of all cells side by side; cells may share an adaptation."""
    plans = {
        plan.fingerprint: (plan, each.workspace)
        for each in cells
        for name in each.workspace.experiment.methods
        for plan in [adapt.plan(each.workspace, name)]
    }

    def work(run: StageRun) -> None:
        missing = [(cell, workspace) for plan, workspace in plans.values() for cell in plan.cells if not cell.is_done]
        unfinished = dict.fromkeys(workspace for _, workspace in missing)
        parents = {workspace: workspace.open(adapt.stage(workspace)) for workspace in unfinished}
        placed = [(cell, parents[workspace]) for cell, workspace in missing]
        adapt.run_cells(run, base.experiment.cluster, placed, sum(len(plan.cells) for plan, _ in plans.values()))

    return Stage("adaptations", "adapt", {"plans": sorted(plans)}, work, base.command)


def evaluations_stage(base: Workspace, cells: list[PlacedCell]) -> Stage:
    """Return the stage that plays the episodes of all cells, some cells together so that no actor waits."""
    fingerprints = [evaluate.stage(each.workspace).fingerprint for each in cells]

    def work(run: StageRun) -> None:
        for first in range(0, len(cells), CELLS_AT_A_TIME):
            some = cells[first : first + CELLS_AT_A_TIME]
            evaluate.play(run, [evaluate.prepare(each.workspace) for each in some])

    return Stage("evaluations", "evaluate", {"cells": fingerprints}, work, base.command)


def results_stage(base: Workspace, benchmark: Benchmark, cells: list[PlacedCell]) -> Stage:
    """Return the stage that puts the evaluations of all cells together and writes the tables."""
    folders = [each.workspace.finished(evaluate.stage(each.workspace)) for each in cells]

    def work(run: StageRun) -> None:
        frames, costs = list[pd.DataFrame](), list[dict[str, Any]]()
        for each, folder in zip(cells, folders, strict=True):
            names = {"arm": each.cell.arm, "few_shot_episodes": each.cell.few_shot_episodes}
            frames.append(pd.read_parquet(folder / EPISODES).assign(**names, training_seed=each.cell.seed))
            methods = json.loads((folder / "summary.json").read_text())["methods"]
            costs += [
                names | {"method": method, "training_seed": each.cell.seed} | of for method, of in methods.items()
            ]
        pd.concat(frames, ignore_index=True).to_parquet(run.folder / EPISODES, index=False)
        (run.folder / COSTS).write_text(json.dumps(costs, indent=1) + "\n")
        for name in (EPISODES, COSTS):
            run.run.log_artifact(run.folder / name)
        tables = write_tables(run.folder, benchmark.reference, benchmark.reference_arm)
        family = get_family(base.experiment.family)
        page = write_page(run.folder, base.title, _facts(base, benchmark), benchmark.reference, family)
        for path in [*tables, page]:
            run.run.log_artifact(path)

    settings = {
        "cells": [folder.name for folder in folders],
        "reference": [benchmark.reference, benchmark.reference_arm],
    }
    outputs = (EPISODES, COSTS, "table.csv", "table.parquet", "per_task.csv", "per_task.parquet", "index.html")
    return Stage("benchmark", "benchmark", settings, work, base.command, outputs=tuple(map(Path, outputs)))


def _facts(base: Workspace, benchmark: Benchmark) -> dict[str, object]:
    """Return what makes a family's numbers repeatable."""
    experiment = base.experiment
    protocol, backbone = experiment.evaluation, pretrain.backbone_folder(base).resolve()
    return {
        "Command": base.command,
        "Dataset": pretrain.checked_dataset(base).manifest.digest,
        "Backbone": fingerprint_of((backbone / "manifest.json").read_text()),
        "Seeds": ", ".join(map(str, benchmark.seeds)),
        "Few-shot episodes": ", ".join(map(str, benchmark.few_shot_episodes)),
        "Episodes a test task": f"{protocol.prompts} prompts x {protocol.episodes_per_prompt}, {protocol.prompt_use}",
        "Precision of evaluation": protocol.precision,
        "Start states": "drawn anew for each seed",
    }


def run_family(options: BenchmarkOptions, family: str) -> None:
    """Run the benchmark on one family and print its table."""
    benchmark = options.benchmark.of_arms(options.arms) if options.arms else options.benchmark
    title = f"{benchmark.name} {family}"
    base_options = JobOptions(
        benchmark.base(family), options.outputs, options.dataset, options.backbone_checkpoint, rerun=options.rerun
    )
    with Workspace(base_options, title=title, kind="benchmark") as base:
        base.check_rerun([*STAGES, *map(pretrain.name_of, pretrain.variants(base)), *train_diffuser.names(base)])
        if options.dataset is None:
            base.run(collect.stage(base))
        for variant in pretrain.variants(base):
            base.run(pretrain.stage(base, variant))
        cells = place(base, benchmark)
        for each in cells:
            for stage in train_diffuser.preparations(each.workspace):
                each.workspace.run(stage)
        workspaces = [each.workspace for each in cells]
        denoised = [each for each in workspaces if each.experiment.diffuser.denoising_steps]
        shared = trainings_of(denoised, train_diffuser.denoising_stage, train_diffuser.denoising_training)
        train_side_by_side(base, "denoising", shared)
        own = trainings_of(workspaces, train_diffuser.stage, train_diffuser.multi_task_training)
        train_side_by_side(base, "diffusers", own)
        base.run(adaptations_stage(base, cells))
        for each in cells:
            each.workspace.run(adapt.stage(each.workspace))
        base.run(evaluations_stage(base, cells))
        for each in cells:
            with each.workspace as workspace:
                workspace.run(evaluate.stage(workspace))
        folder = base.run(results_stage(base, benchmark, cells))
        print_table(base.console, _table(family, pd.read_csv(folder / "table.csv")))
        base.console.print(f"page     {folder / 'index.html'}", soft_wrap=True)


def _table(family: str, rows: pd.DataFrame) -> Table:
    """Return the table without the columns that tell nothing apart."""
    seeds = rows["seeds"].max()
    table = Table(title=f"{family}, one backbone: mean return over test tasks and {seeds} seed{'s' * bool(seeds > 1)}")
    texts = pd.DataFrame(_texts(row) for row in rows.to_dict("records"))
    always = ("method", "return", "normalised")
    shown = [column for column in texts if column in always or texts[column].nunique() > 1]
    for column in shown:
        table.add_column(column, justify="left" if column in ("arm", "method") else "right", no_wrap=True)
    for row in texts[shown].to_numpy():
        table.add_row(*row)
    table.add_section()
    scores = reference_scores(get_family(family))
    for policy in FLOORS:
        mean, normalised = scores[policy]["mean"], scores[policy]["normalised"]
        cells = {shown[0]: policy, "return": f"{mean:.1f}", "normalised": f"{normalised:.3f}"}
        table.add_row(*(cells.get(column, "") for column in shown), style="dim")
    return table


def _texts(row: dict[str, Any]) -> dict[str, str]:
    return {
        "arm": str(row["arm"]),
        "few-shot": f"{row['few_shot_episodes']}",
        "method": row["method"],
        "return": _with_interval(row, "return", ".1f"),
        "normalised": known(row["normalised"], ".3f"),
        "difference": "" if pd.isna(row["difference"]) else _with_interval(row, "difference", "+.1f"),
        "verdict": row["verdict"],
        "numbers": f"{row['tunable']:.0f}",
        "updates": f"{row['updates']:.0f}",
        "episodes": f"{row['episodes']:.0f}",
        "seconds": f"{row['adapt_s']:.1f}",
    }


def _with_interval(row: dict[str, Any], name: str, form: str) -> str:
    return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"], form)


def main(options: BenchmarkOptions) -> None:
    """Run the benchmark on every family."""
    for family in options.benchmark.families:
        run_family(options, family)
