"""Scoring models on validation tasks: a finished one, or the snapshots of a training beside the training itself."""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch

from promptdiffuser.background import beside
from promptdiffuser.data.store import Dataset
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.errors import UserError
from promptdiffuser.evaluation.scores import summarise_method
from promptdiffuser.experiment import ClusterConfig
from promptdiffuser.methods import get_method
from promptdiffuser.methods.inputs import InputsBuilder, InputsSettings
from promptdiffuser.rollout.blocks import evaluation_blocks
from promptdiffuser.rollout.policies import AdaptedPolicies
from promptdiffuser.rollout.protocol import ProtocolConfig
from promptdiffuser.tracking.names import SCORES, score_metrics
from promptdiffuser.tracking.store import RunLog
from promptdiffuser.training.model_folders import load_backbone
from promptdiffuser.training.snapshots import Criterion, Scores, keep_best_snapshot, read_scores, write_scores
from promptdiffuser.training.trainings import DiffuserTraining

POLL_SECONDS = 1.0
CPU = torch.device("cpu")
NORMALISED = Criterion("normalised", "max")
"""How snapshots that were scored on validation tasks are compared."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """How a model is scored: by what a method makes of it on validation tasks."""

    method: str
    dataset: Dataset
    settings: InputsSettings
    protocol: ProtocolConfig
    backbone_folder: Path | None = None
    """The frozen backbone, if the model is a diffuser; None if the model is the backbone."""

    def score(
        self,
        model_folder: Path,
        pool: RolloutPool,
        adapt_folder: Path | None = None,
        few_shot: Mapping[int, DiffuserTraining] | None = None,
    ) -> dict[str, float | None]:
        """Return mean return, its interval, the normalised score, the seconds of all episodes, and each task's mean.

        Args:
            model_folder: The model.
            pool: Steps the episodes.
            adapt_folder: Where adaptations that train on a task write; without it none may.
            few_shot: A diffuser's few-shot stage by task; without it the diffuser stays as it is.
        """
        family = self.dataset.family
        method, tasks = get_method(self.method), family.validation_tasks
        backbone, normaliser = load_backbone(self.backbone_folder or model_folder, family, CPU)
        builder = InputsBuilder(self.dataset, backbone, normaliser, self.settings)
        diffuser_folder = model_folder if method.diffuser else None
        adapted = {}
        for task in tasks:
            folder = adapt_folder / f"task-{task}" if adapt_folder else model_folder
            training = few_shot[task] if few_shot else None
            adapted[task] = method.adapt(builder.inputs(method, task, folder, diffuser_folder, training)).policy
        policies = AdaptedPolicies(normaliser, {method.name: adapted})
        requests = self.protocol.requests(family, [method.name], tasks)
        blocks = evaluation_blocks(requests, self.protocol, policies)
        episodes = pd.concat([result for _, result in pool.run(blocks, policies)])
        summary = summarise_method(episodes, self.dataset.manifest.tasks)
        by_task = {f"task-{task}": mean for task, mean in summary["per_task"].items()}
        return {name: summary[name] for name in (*SCORES, "seconds")} | by_task


@contextmanager
def validating(folder: Path, validation: Validation, cluster: ClusterConfig, run: RunLog) -> Iterator[None]:
    """Score the snapshots below a training's folder while the body trains; the best one is kept.

    Training never waits for it; leaving the body does, for the snapshots that are not scored yet. Scores are kept in
    `folder`/snapshots/scores.json, so a resumed training does not score a step again.

    A snapshot that cannot be scored does not stop the training: a warning says so at once, and the error is raised when
    the body has ended.

    Args:
        folder: Folder of the training.
        validation: How a snapshot is scored.
        cluster: The rollout actors that step the episodes.
        run: Takes the scores.

    Raises:
        UserError: A snapshot could not be scored, for a reason that the user can repair.
        RuntimeError: A snapshot could not be scored, for another reason.
    """
    scorer = _SnapshotScorer(folder / "snapshots", validation, cluster, run)
    failures = list[Exception]()

    def watch(stop: threading.Event) -> None:
        try:
            while not stop.wait(POLL_SECONDS):
                scorer.score_new()
        except Exception as error:
            failures.append(error)
            log.warning("%s; the training goes on, its other snapshots are not scored", error)

    try:
        with beside(watch):
            yield
        if failures:
            raise failures[0]
        scorer.finish()
    finally:
        scorer.close()


class _SnapshotScorer:
    def __init__(self, snapshots: Path, validation: Validation, cluster: ClusterConfig, run: RunLog) -> None:
        self._snapshots, self._validation, self._cluster, self._run = snapshots, validation, cluster, run

    @cached_property
    def _pool(self) -> RolloutPool:
        family, cluster = self._validation.dataset.family.name, self._cluster
        return RolloutPool(family, cluster.rollout_actors, cluster.gpus_per_actor, cluster.block_limit_s)

    def score_new(self) -> None:
        """Score the snapshots that have no score yet, oldest first, and delete all but the best."""
        scores = read_scores(self._snapshots)
        for snapshot in sorted(self._snapshots.glob("step-*")):
            if snapshot.name not in scores:
                scores[snapshot.name] = self._score(snapshot)
                write_scores(self._snapshots, scores)
                self._log(scores)
        keep_best_snapshot(self._snapshots, NORMALISED)

    def finish(self) -> None:
        """Score what is left; the run gets all scores, should it have lost some."""
        self.score_new()
        self._log(read_scores(self._snapshots))

    def close(self) -> None:
        """End the actors, if there are any."""
        if "_pool" in self.__dict__:
            self._pool.close()

    def _score(self, snapshot: Path) -> dict[str, float | None]:
        try:
            return self._validation.score(snapshot, self._pool)
        except Exception as error:
            kind = UserError if isinstance(error, UserError) else RuntimeError
            raise kind(
                f"snapshot {snapshot} cannot be scored ({type(error).__name__}: {error}); the same command tries again"
            ) from error

    def _log(self, scores: Scores) -> None:
        self._run.log_history(
            [
                {"step": int(name.removeprefix("step-"))} | score_metrics("validation", score)
                for name, score in sorted(scores.items())
            ]
        )
