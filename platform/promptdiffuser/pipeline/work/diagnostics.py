"""A look at the prompts that trained diffusers generate."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from promptdiffuser.evaluation.diagnostics import Inspector, RealPrompts, mean_of_tasks
from promptdiffuser.experiment import Experiment
from promptdiffuser.pipeline.session import StageRun
from promptdiffuser.training.model_folders import load_backbone, load_diffuser

CPU = torch.device("cpu")
MOST_TASKS = 20
"""Target tasks that are looked at, spread over all: one takes about half a second."""


def look_inside(
    run: StageRun, experiment: Experiment, backbone_folder: Path, models: Mapping[str, Mapping[int, Path]]
) -> None:
    """Leave prompts_inside.json, {name: {measure: mean over target tasks}}, and metrics inside/NAME/MEASURE.

    `models` are folders of diffusers by name and target task; all names have the same tasks.
    """
    dataset = run.dataset(experiment)
    tasks = list(next(iter(models.values())))
    tasks = tasks[:: -(-len(tasks) // MOST_TASKS)]
    backbone, normaliser = load_backbone(backbone_folder, dataset.family, CPU)
    real = RealPrompts.read(
        dataset,
        experiment.quality,
        tasks,
        experiment.evaluation.few_shot,
        backbone.config.prompt_length,
        experiment.diffuser.context_transitions,
        normaliser,
    )
    inspector, measures = Inspector(dataset.family, real), {}
    for name, folders in models.items():
        diffusers = {task: load_diffuser(folders[task], dataset.family, CPU) for task in tasks}
        measures[name] = mean_of_tasks(
            {task: inspector.inspect(task, diffuser, experiment.seed) for task, diffuser in diffusers.items()}
        )
        run.log.log_metrics({f"inside/{name}/{measure}": value for measure, value in measures[name].items()})
    path = run.folder / "prompts_inside.json"
    path.write_text(json.dumps(measures, indent=1) + "\n")
    run.log.log_artifact(path)
