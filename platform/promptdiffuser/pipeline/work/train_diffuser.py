"""Diffusers are trained on Ray Train workers, or many side by side as a Ray task each; tuned prompts come first."""

from pathlib import Path

from promptdiffuser.assembly import located
from promptdiffuser.distributed.cluster import connect
from promptdiffuser.distributed.optimised_prompts import optimise_prompts
from promptdiffuser.distributed.training import TrainJob
from promptdiffuser.errors import UserError
from promptdiffuser.experiment import Experiment
from promptdiffuser.pipeline.session import ExperimentRun, Session, StageRun
from promptdiffuser.pipeline.stages.pretrain import MODEL
from promptdiffuser.pipeline.stages.train_diffuser import OPTIMISED, DiffuserStage
from promptdiffuser.pipeline.work.diagnostics import look_inside
from promptdiffuser.pipeline.work.pretrain import train_with_ray, validation_of
from promptdiffuser.training.checkpoint import is_whole
from promptdiffuser.training.optimised_prompts import PromptOptimisation
from promptdiffuser.training.trainings import DiffuserTraining


def optimise(run: StageRun, experiment: Experiment) -> None:
    """Tune the prompts of every training task, one Ray task per training task."""
    dataset, config = run.dataset(experiment), experiment.diffuser.optimised_prompts
    jobs = [
        PromptOptimisation(
            task, run.folder, dataset, experiment.quality, run.product("backbone"), config, experiment.seed
        )
        for task in dataset.family.train_tasks
    ]
    missing = [job for job in jobs if not job.is_done]
    run.expect(len(jobs), len(jobs) - len(missing))
    if missing:
        connect(experiment.cluster)
        for _ in optimise_prompts(missing, num_gpus=experiment.cluster.gpus_per_task):
            run.advance()


def train(run: StageRun, experiment: Experiment, training: DiffuserTraining, is_made_with_others: bool) -> None:
    """Train a diffuser by the denoising loss in the stage's folder."""
    if is_made_with_others and is_whole(run.folder / MODEL):
        return
    dataset = run.dataset(experiment)
    train_with_ray(run, training_of(run.session, DiffuserStage(run.stage, experiment, training)), dataset, experiment)


def train_and_look(
    run: StageRun,
    experiment: Experiment,
    training: DiffuserTraining,
    diffuser: str,
    scored_by: str,
    is_made_with_others: bool,
) -> None:
    """Train a diffuser in the stage's folder, score its snapshots, register it and look into it."""
    # Elsewhere a model does not say that its stage is over: its snapshots may have to be scored, or it be looked into.
    if is_made_with_others and is_whole(run.folder / MODEL):
        return
    dataset = run.dataset(experiment)
    here = training_of(run.session, DiffuserStage(run.stage, experiment, training))
    validation = validation_of(dataset, experiment, scored_by, here.backbone_folder)
    train_with_ray(run, here, dataset, experiment, validation)
    run.log.log_model(f"{experiment.name}-{diffuser}", run.folder / MODEL, "train-diffuser")
    folders = dict.fromkeys(dataset.family.validation_tasks, run.folder / MODEL)
    look_inside(run, experiment, here.backbone_folder, {diffuser: folders})


def training_of(session: Session, each: DiffuserStage) -> DiffuserTraining:
    """Return a stage's training with its data and models."""
    inputs = each.stage.inputs
    return located(
        each.training,
        each.experiment,
        session.dataset(inputs["dataset"], each.experiment),
        session.product(inputs["backbone"]),
        session.product(inputs["start"]) if "start" in inputs else None,
        session.product(inputs[OPTIMISED]) if OPTIMISED in inputs else None,
    )


def job_of(session: Session, each: DiffuserStage, of: ExperimentRun) -> TrainJob | None:
    """Return a stage's training as one that needs no Ray Train, for many side by side; None where it is done."""
    experiment, folder = each.experiment, session.store.folder_of(each.stage)
    session.store.claim(folder, session.contents(each.stage))
    if is_whole(folder / MODEL):
        return None
    if each.training.optimisation.snapshot_every:
        raise UserError(
            "diffuser.multi_task.snapshot_every must be 0 where many diffusers are trained side by side; their "
            "snapshots would have to be scored in turn"
        )
    dataset = session.dataset(each.stage.inputs["dataset"], experiment)
    tasks, log = dataset.family.train_tasks, session.open(each.stage, of)
    return TrainJob(training_of(session, each), dataset, tasks, experiment.quality, Path(folder), log)
