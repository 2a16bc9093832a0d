"""The trainings that an experiment asks for."""

import dataclasses
from pathlib import Path

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.plans import Rounds
from promptdiffuser.data.store import Dataset
from promptdiffuser.experiment import Experiment
from promptdiffuser.methods.diffusers import DIFFUSERS
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.tasks import get_family
from promptdiffuser.training.trainings import BackboneTraining, DiffuserTraining


def backbone_training(experiment: Experiment, dataset: Dataset, backbone: BackboneConfig) -> BackboneTraining:
    """Return the pre-training of a variant of the experiment's backbone; reads the dataset once, for its statistics."""
    family = get_family(experiment.family)
    parts = dataset.parts(statistics_tasks(experiment), experiment.quality)
    return BackboneTraining(
        family=family.name,
        seed=experiment.seed,
        backbone=backbone,
        loss=experiment.pretraining.loss,
        optimisation=experiment.pretraining.optimisation,
        statistics=Normaliser.fit(parts, family.return_scale).tensors(),
        dataset_digest=dataset.manifest.digest,
        rounds=rounds_of(dataset, experiment),
    )


def diffuser_training(experiment: Experiment, diffuser: str, backbone: BackboneConfig) -> DiffuserTraining:
    """Return the multi-task training of a diffuser from new weights, which `located` gives its data and models.

    Args:
        experiment: All other settings.
        diffuser: Its name in `DIFFUSERS`.
        backbone: The frozen backbone that it is trained through.
    """
    variant = DIFFUSERS[diffuser]
    return DiffuserTraining(
        family=experiment.family,
        seed=experiment.seed,
        stage="multi-task",
        denoiser=dataclasses.replace(experiment.denoiser, **variant.denoiser),
        diffusion=experiment.diffusion,
        guidance=dataclasses.replace(experiment.guidance, **variant.guidance),
        with_context=variant.sees_task_context,
        batch_size=experiment.diffuser.batch_size,
        guidance_start=experiment.diffuser.guidance_start,
        context_episodes=experiment.diffuser.context_episodes,
        context_transitions=experiment.diffuser.context_transitions,
        optimisation=experiment.diffuser.multi_task,
        prompt_length=backbone.prompt_length,
        window_steps=experiment.guidance.window_steps or backbone.window_steps,
    )


def located(
    training: DiffuserTraining,
    experiment: Experiment,
    dataset: Dataset,
    backbone_folder: Path,
    start_from: Path | None = None,
    optimised_prompts: Path | None = None,
) -> DiffuserTraining:
    """Return a training on a dataset, through the backbone in a folder that need not be there yet."""
    return dataclasses.replace(
        training,
        backbone_folder=backbone_folder,
        dataset_digest=dataset.manifest.digest,
        rounds=rounds_of(dataset, experiment),
        start_from=start_from,
        optimised_prompts=optimised_prompts,
    )


def few_shot_training(
    training: DiffuserTraining, experiment: Experiment, start_from: Path | None, task: int
) -> DiffuserTraining:
    """Return the few-shot updates of a diffuser on a target task, after its multi-task training."""
    return dataclasses.replace(
        training,
        stage=f"few-shot-{task}",
        optimisation=experiment.diffuser.few_shot,
        start_from=start_from,
        # The multi-task training has learnt the data's shape; every few-shot update is guided.
        guidance_start=0,
        held_out_episodes=experiment.diffuser.held_out_episodes,
        # The few-shot stage learns from the target task's own prompts, as they are.
        optimised_prompts=None,
        # A few episodes are resident.
        rounds=Rounds(),
    )


def statistics_tasks(experiment: Experiment) -> tuple[int, ...]:
    """Return the tasks whose episodes the states are normalised by."""
    family = get_family(experiment.family)
    return family.train_tasks if experiment.pretraining.statistics == "training" else family.tasks


def rounds_of(dataset: Dataset, experiment: Experiment) -> Rounds:
    """Return how a streamed training goes through the files of the training tasks; a resident one has no rounds."""
    if experiment.cluster.data == "resident":
        return Rounds()
    files = dataset.files(dataset.family.train_tasks, experiment.quality)
    return Rounds.over(experiment.rounds, (record for _, record in files))
