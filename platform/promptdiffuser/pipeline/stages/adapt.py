"""Adapt the frozen backbone to every unseen test task by every method of an experiment, as Ray tasks.

    python jobs/adapt.py quickstart --methods prompt-dt prompt-diffuser-context

A method on a task is a cell. Cells lie in folders named by what they compute, so an interrupted job goes on cell by
cell, and a longer list of methods runs the new ones alone.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from promptdiffuser.distributed.adaptation import adapt_cells
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.experiment import ClusterConfig
from promptdiffuser.methods import get_method
from promptdiffuser.methods.cells import AdaptationCell
from promptdiffuser.pipeline.options import JobOptions
from promptdiffuser.pipeline.session import Stage, StageRun, Workspace, fingerprint_of, status_of
from promptdiffuser.pipeline.stages import pretrain, train_diffuser
from promptdiffuser.pipeline.stages.diagnostics import look_inside
from promptdiffuser.tasks import get_family
from promptdiffuser.tracking.names import METHOD_TAG, STAGE_TAG, TASK_TAG
from promptdiffuser.tracking.store import RunLog, Tracker
from promptdiffuser.training.checkpoint import read_manifest
from promptdiffuser.training.precision import resolve_precisions
from promptdiffuser.training.trainings import DiffuserTraining


@dataclass(frozen=True)
class MethodPlan:
    """A method's cells and what names their content."""

    method: str
    fingerprint: str
    cells: tuple[AdaptationCell, ...]

    @property
    def folder(self) -> Path:
        """Folder of all cells."""
        return self.cells[0].folder.parent

    @property
    def content(self) -> str:
        """Identify the policies that the finished cells made, whatever they cost: 16 hexadecimal digits."""
        manifests = {cell.task: read_manifest(cell.result) for cell in self.cells}
        policies = {task: {name: of[name] for name in of if name != "cost.json"} for task, of in manifests.items()}
        return fingerprint_of([self.fingerprint, policies])

    @property
    def diffusers(self) -> dict[int, Path]:
        """Target task -> folder of the diffuser that makes its prompts from its few-shot set.

        Nothing for methods without a diffuser, and for zero-shot ones, which make prompts from something else.
        """
        if get_method(self.method).is_zero_shot:
            return {}
        trained = {c.task: c.folder / "model" if c.few_shot_training else c.diffuser_folder for c in self.cells}
        return {task: folder for task, folder in trained.items() if folder is not None}


@cache
def plan(workspace: Workspace, name: str) -> MethodPlan:
    """Return a method's cells on the test tasks; several stages of a job ask for it."""
    experiment, method, dataset = workspace.experiment, get_method(name), pretrain.checked_dataset(workspace)
    backbone_folder = pretrain.backbone_folder(workspace, method.backbone).resolve()
    settings = pretrain.inputs_settings(experiment, experiment.evaluation)
    tasks = get_family(experiment.family).test_tasks
    content: dict[str, Any] = {
        "method": name,
        "dataset": dataset.manifest.digest,
        "backbone": (backbone_folder / "manifest.json").read_text(),
        "settings": dataclasses.asdict(settings),
    }
    diffuser_folder, trainings = None, dict[int, DiffuserTraining]()
    if method.diffuser is not None:
        diffuser_folder = workspace.finished(train_diffuser.stage(workspace, method.diffuser)) / "model"
        content["diffuser"] = (diffuser_folder / "manifest.json").read_text()
    if method.diffuser is not None and method.few_shot_updates:
        trainings = {task: train_diffuser.few_shot_of(workspace, method.diffuser, task) for task in tasks}
        content["few_shot"] = {task: train_diffuser.settings_of(training) for task, training in trainings.items()}
    fingerprint = fingerprint_of(resolve_precisions(content, pretrain.training_device(experiment)))
    folder = workspace.folder / "adaptations" / f"{name}-{fingerprint[:8]}"
    cells = tuple(
        AdaptationCell(
            name,
            task,
            folder / f"task-{task}",
            dataset,
            backbone_folder,
            settings,
            diffuser_folder,
            trainings.get(task),
        )
        for task in tasks
    )
    return MethodPlan(name, fingerprint, cells)


def stage(workspace: Workspace) -> Stage:
    """Return the adapt stage."""
    plans = [plan(workspace, name) for name in workspace.experiment.methods]

    def work(run: StageRun) -> None:
        cells = [cell for each in plans for cell in each.cells]
        missing = [(cell, run.run) for cell in cells if not cell.is_done]
        if missing:
            few_shot, tasks = workspace.experiment.evaluation.few_shot, sorted({cell.task for cell in cells})
            pretrain.log_input(run, pretrain.checked_dataset(workspace), tuple(tasks), few_shot.quality)
        run_cells(run, workspace.experiment.cluster, missing, len(cells))
        # A benchmark trains more diffusers than anybody looks into.
        if workspace.base is None and (models := {each.method: each.diffusers for each in plans if each.diffusers}):
            look_inside(run, workspace, models)

    return Stage(
        "adapt",
        "adapt",
        {each.method: each.fingerprint for each in plans},
        work,
        f"python jobs/adapt.py {workspace.experiment.name}",
        checkpoints=tuple(cell.result for each in plans for cell in each.cells),
        makes=tuple(each.folder for each in plans),
    )


def run_cells(
    run: StageRun, cluster: ClusterConfig, missing: Sequence[tuple[AdaptationCell, RunLog]], total: int
) -> None:
    """Run the cells that are missing of a total, each given with the run that its training's run lies below."""
    run.expect(total, total - len(missing))
    if missing:
        connect(cluster)
        logged = [(cell, history_log(run.tracker, parent, cell)) for cell, parent in missing]
        try:
            for _ in adapt_cells(logged, num_gpus=cluster.gpus_per_task):
                run.advance()
        except BaseException as error:
            for cell, log in logged:
                if log is not None:
                    log.finish("FINISHED" if cell.is_done else status_of(type(error)))
            raise


def history_log(tracker: Tracker, parent: RunLog, cell: AdaptationCell) -> RunLog | None:
    """Return the run that a cell's training is logged to; a cell that trains nothing has none."""
    if cell.few_shot_training is None:
        return None
    return tracker.run(
        f"few-shot {cell.method} task {cell.task}",
        f"{cell.folder.parent.name}/{cell.task}",
        parent,
        {STAGE_TAG: "few-shot-task", METHOD_TAG: cell.method, TASK_TAG: str(cell.task)},
    )


def main(options: JobOptions) -> None:
    """Run the stage."""
    with Workspace(options) as workspace:
        workspace.check_rerun(["adapt"])
        workspace.run(stage(workspace))
        for name in workspace.experiment.methods:
            print(plan(workspace, name).folder)
