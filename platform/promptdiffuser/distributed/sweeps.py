"""Ray Tune: trials that train a diffuser and are scored on validation tasks by a shared pool of rollout actors.

Trials are plain Tune functions without Ray Train inside: a trial is one short training on one core, and starting Ray
Train would cost as long as the training. A trial's result is a file, so a sweep that is run again runs missing points.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import ray.tune
import torch

from promptdiffuser.data.store import open_dataset
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.distributed.training import TrainJob
from promptdiffuser.evaluation.blocks import AdaptedPolicies, EvaluationBlock
from promptdiffuser.evaluation.protocol import ProtocolConfig
from promptdiffuser.evaluation.scores import summarise_method
from promptdiffuser.learning.model_folders import load_backbone, load_diffuser
from promptdiffuser.learning.trainings import DiffuserTraining, make_resident, train
from promptdiffuser.methods import get_method
from promptdiffuser.methods.inputs import PoolBuilder, prompts_by_task

RESULT = "result.json"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Trial:
    """One point of a sweep: a diffuser training and the validation tasks it is scored on."""

    name: str
    point: dict[str, float | str]
    job: TrainJob
    """Its training is a `DiffuserTraining`."""
    method: str
    validation_tasks: tuple[int, ...]
    protocol: ProtocolConfig

    @property
    def result_file(self) -> Path:
        """Where the finished trial's result is."""
        return self.job.folder / RESULT


def run_trials(trials: Sequence[Trial], pool: RolloutPool, concurrency: int, storage: Path) -> None:
    """Run the trials that have no result file yet; raises RuntimeError naming the trials that failed."""
    missing = [trial for trial in trials if not trial.result_file.is_file()]
    if not missing:
        return

    trainable = ray.tune.with_parameters(_run_trial, trials=missing, pool=pool)
    results = ray.tune.Tuner(
        ray.tune.with_resources(trainable, {"cpu": 1}),
        param_space={"trial": ray.tune.grid_search(list(range(len(missing))))},
        tune_config=ray.tune.TuneConfig(max_concurrent_trials=concurrency),
        run_config=ray.tune.RunConfig(name="ray-tune", storage_path=str(storage), verbose=0),
    ).fit()
    if results.num_errors:
        names = [trial.name for trial in missing if not trial.result_file.is_file()]
        raise RuntimeError(f"trials failed: {', '.join(names)}; the first error was {results.errors[0]}")


def _run_trial(config: dict[str, int], trials: Sequence[Trial], pool: RolloutPool) -> None:
    torch.set_num_threads(1)
    result = score_trial(trials[config["trial"]], pool)
    ray.tune.report(result)


def score_trial(trial: Trial, pool: RolloutPool) -> dict[str, Any]:
    """Train the trial's diffuser, let it make prompts for the validation tasks, and score them."""
    job, training = trial.job, trial.job.training
    assert isinstance(training, DiffuserTraining)
    dataset = open_dataset(job.storage)
    resident, prompt_pool = make_resident(training, dataset.read(job.tasks, job.quality), CPU)
    train(training, training.learning_task(resident, prompt_pool, CPU), job.folder, on_checkpoint=job.run.log_history)

    backbone, normaliser = load_backbone(training.backbone_folder, dataset.family, CPU)
    diffuser = load_diffuser(job.folder / "model", dataset.family, CPU)
    prompts = prompts_by_task(
        get_method(trial.method),
        trial.validation_tasks,
        PoolBuilder(dataset, normaliser, training.prompt_length, training.context_transitions, job.quality),
        trial.protocol.few_shot,
        trial.protocol.prompts,
        training.seed,
        lambda task: diffuser,
    )
    policies = AdaptedPolicies(backbone, normaliser, {trial.method: prompts})
    blocks = [EvaluationBlock(trial.method, task, trial.protocol, training.seed) for task in trial.validation_tasks]
    episodes = pd.concat([result for _, result in pool.run(blocks, policies)])
    summary = summarise_method(episodes, dataset.manifest.tasks, training.seed)
    scores = {key: summary[key] for key in ("mean", "ci_low", "ci_high", "normalised", "seconds")}
    job.run.log_metrics({f"validation/{key}": value for key, value in scores.items()})
    job.run.finish()
    temporary = trial.result_file.with_suffix(".writing")
    temporary.write_text(json.dumps(trial.point | scores))
    temporary.rename(trial.result_file)
    return scores
