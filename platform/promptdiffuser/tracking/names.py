"""Names of tags and metrics: the same for every stage and method, so that MLflow's tables and charts compare runs.

Metric keys begin with train/, validation/, test/, time/ (seconds), cost/, data/ (what a dataset holds) or system/.
"""

from collections.abc import Mapping
from math import nan

FINGERPRINT_TAG = "promptdiffuser.fingerprint"
STAGE_TAG = "promptdiffuser.stage"
METHOD_TAG = "promptdiffuser.method"
FAMILY_TAG = "promptdiffuser.family"
SEED_TAG = "promptdiffuser.seed"
TASK_TAG = "promptdiffuser.task"
COMMAND_TAG = "promptdiffuser.command"
FOLDER_TAG = "promptdiffuser.folder"
DIRTY_TAG = "promptdiffuser.dirty"
"""Whether files of the commit were changed when the run was made: true or false."""
VERSION_TAG = "promptdiffuser.version."
"""Prefix of the tags that name the versions of packages."""
USED_RUN_TAG = "promptdiffuser.run."
"""Prefix of an experiment run's tags that name the run of each stage it used, its own or an earlier experiment's."""
# MLflow's own, which its pages show.
PARENT_TAG = "mlflow.parentRunId"
COMMIT_TAG = "mlflow.source.git.commit"

SCORES = {
    "mean": "return",
    "ci_low": "return_low",
    "ci_high": "return_high",
    "normalised": "normalised",
    "diverged": "diverged",
}
"""Name in a summary of episodes -> metric below validation/ or test/."""


def score_metrics(split: str, scores: Mapping[str, float | None]) -> dict[str, float]:
    """Return the metrics of a model's scores on the tasks of a split.

    Args:
        split: validation or test.
        scores: The names of `SCORES`, `task-N` with the mean return of a task, and the `seconds` of all episodes. None
            is not known and becomes NaN.
    """
    tasks = {name: name for name in scores if name.startswith("task-")}
    metrics = {name: f"{split}/{metric}" for name, metric in (SCORES | tasks).items()} | {"seconds": "time/evaluate_s"}
    return {metric: nan if (value := scores[name]) is None else value for name, metric in metrics.items()}
