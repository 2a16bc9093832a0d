"""Methods adapt to tasks as one Ray task each.

An adaptation lies in a folder named by what it computes, so an interrupted job goes on adaptation by adaptation.
"""

from collections.abc import Sequence
from pathlib import Path

from promptdiffuser.assembly import few_shot_training, located
from promptdiffuser.distributed.adaptation import adapt_cells
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.experiment import ClusterConfig, Experiment
from promptdiffuser.keys import fingerprint
from promptdiffuser.methods.cells import AdaptationCell
from promptdiffuser.pipeline.session import Session, StageRun, status_of
from promptdiffuser.pipeline.stages.adapt import MethodPlan
from promptdiffuser.pipeline.stages.pretrain import inputs_settings
from promptdiffuser.pipeline.work.diagnostics import look_inside
from promptdiffuser.pipeline.work.pretrain import log_input
from promptdiffuser.tasks import get_family
from promptdiffuser.tracking.names import METHOD_TAG, STAGE_TAG, TASK_TAG
from promptdiffuser.tracking.store import RunLog, Tracker
from promptdiffuser.training.checkpoint import read_manifest

NO_POLICY = ("cost.json", "origin.json")
"""Files of an adaptation that do not decide what its policy does."""


def adapt(run: StageRun, experiment: Experiment, plans: list[MethodPlan], looks_inside: bool) -> None:
    """Make the adaptations that are missing, and look into the diffusers that made prompts."""
    cells = {plan.method.name: cells_of(run.session, plan) for plan in plans}
    every = [cell for some in cells.values() for cell in some]
    missing = [(cell, run.log) for cell in every if not cell.is_done]
    if missing:
        few_shot, tasks = experiment.evaluation.few_shot, sorted({cell.task for cell in every})
        log_input(run, run.dataset(experiment), tuple(tasks), few_shot.quality)
    run_cells(run, experiment.cluster, missing, len(every))
    models = {plan.method.name: _diffusers(plan, cells[plan.method.name]) for plan in plans}
    if looks_inside and (models := {name: folders for name, folders in models.items() if folders}):
        first = next(plan for plan in plans if plan.method.name in models)
        look_inside(run, experiment, run.session.product(first.inputs["backbone"]), models)


def cells_of(session: Session, plan: MethodPlan) -> tuple[AdaptationCell, ...]:
    """Return a method's adaptations, one for each test task, in a folder that is ready for them."""
    experiment, inputs = plan.experiment, plan.inputs
    dataset = session.dataset(inputs["dataset"], experiment)
    contents = {name: session.store.content(node) or "" for name, node in inputs.items()}
    folder = session.folder / plan.part.folder
    session.store.claim(folder, contents)
    backbone_folder = session.product(inputs["backbone"])
    diffuser_folder = session.product(inputs["diffuser"]) if "diffuser" in inputs else None
    here = None
    if plan.few_shot_training is not None:
        here = located(plan.few_shot_training, experiment, dataset, backbone_folder)
    settings = inputs_settings(experiment, experiment.evaluation)
    return tuple(
        AdaptationCell(
            plan.method.name,
            task,
            folder / f"task-{task}",
            dataset,
            backbone_folder,
            settings,
            diffuser_folder,
            None if here is None else few_shot_training(here, experiment, diffuser_folder, task),
        )
        for task in get_family(experiment.family).test_tasks
    )


def content_of(session: Session, plan: MethodPlan) -> str:
    """Identify the policies that the finished adaptations made, whatever they cost and wherever the backbone lies."""
    folder = session.folder / plan.part.folder
    manifests = {str(name): read_manifest(folder / name) for name in plan.part.checkpoints}
    policies = {task: {name: of[name] for name in of if name not in NO_POLICY} for task, of in manifests.items()}
    return fingerprint([plan.part.key, policies])


def _diffusers(plan: MethodPlan, cells: Sequence[AdaptationCell]) -> dict[int, Path]:
    """Return target task -> folder of the diffuser that makes its prompts from its few-shot set.

    Nothing for methods without a diffuser, and for zero-shot ones, which make prompts from something else.
    """
    if plan.method.is_zero_shot:
        return {}
    trained = {cell.task: cell.folder / "model" if cell.few_shot_training else cell.diffuser_folder for cell in cells}
    return {task: folder for task, folder in trained.items() if folder is not None}


def run_cells(
    run: StageRun, cluster: ClusterConfig, missing: Sequence[tuple[AdaptationCell, RunLog]], total: int
) -> None:
    """Run the adaptations that are missing of a total, each given with the run that its training's run lies below."""
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
    """Return the run that an adaptation's training is logged to; one that trains nothing has none."""
    if cell.few_shot_training is None:
        return None
    return tracker.run(
        f"few-shot {cell.method} task {cell.task}",
        f"{cell.folder.parent.name}/{cell.task}",
        parent,
        {STAGE_TAG: "few-shot-task", METHOD_TAG: cell.method, TASK_TAG: str(cell.task)},
    )
