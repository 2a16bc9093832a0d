"""Ray Tune: trials that train a diffuser and are scored on validation tasks by a shared pool of rollout actors.

Trials are plain Tune functions without Ray Train inside: a trial is one short training on one core, and starting Ray
Train would cost as long as the training. A trial's result is a file, so a sweep that is run again runs missing points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.tune
import torch

from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.distributed.training import TrainJob
from promptdiffuser.distributed.validation import Validation
from promptdiffuser.learning.checkpoint import write_json
from promptdiffuser.learning.trainings import make_resident, train

RESULT = "result.json"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Trial:
    """One point of a sweep: a diffuser training and the validation tasks it is scored on."""

    name: str
    point: dict[str, float | str]
    job: TrainJob
    validation: Validation

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
    resident, prompt_pool = make_resident(training, job.dataset.read(job.tasks, job.quality), CPU)
    train(training, training.learning_task(resident, prompt_pool, CPU), job.folder, on_checkpoint=job.run.log_history)
    scores = trial.validation.score(job.folder / "model", pool)
    job.run.log_metrics({f"validation/{key}": value for key, value in scores.items()})
    job.run.finish()
    write_json(trial.result_file, trial.point | scores)
    return scores
