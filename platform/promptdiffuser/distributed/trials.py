"""One trial of a sweep: trained in pieces, scored on validation tasks after each, stopped early or trained to its end.

A diffuser trains in the trial's own process: starting Ray Train would cost as long as the training. A backbone trains
on Ray Train workers inside the trial. A training that pauses at a milestone continues from its checkpoint.
"""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptdiffuser.assembly import backbone_training, diffuser_training, few_shot_training, located
from promptdiffuser.data.store import Dataset
from promptdiffuser.distributed.rollouts import RolloutPool
from promptdiffuser.distributed.stopping import stops
from promptdiffuser.distributed.training import TrainJob, train_in_process, train_on_cluster
from promptdiffuser.distributed.validation import Validation
from promptdiffuser.experiment import Experiment
from promptdiffuser.methods import get_method
from promptdiffuser.methods.backbones import backbone_config
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.sweeps.ledger import Ledger, Row, trial_name
from promptdiffuser.sweeps.space import Point, apply
from promptdiffuser.tracking.names import STAGE_TAG, score_metrics
from promptdiffuser.tracking.store import RunLog, Tracker
from promptdiffuser.training.engine import NonFiniteGradientError
from promptdiffuser.training.model_folders import count_parameters
from promptdiffuser.training.trainings import DiffuserTraining

SUMMED = ("time/seconds", "cost/environment_steps")
SUMMARISED = ("validation/return", "validation/return_low", "validation/return_high", "validation/normalised")


@dataclass(frozen=True)
class SweepPlan:
    """All that the trials of a sweep share; travels to the processes that run them."""

    ledger: Ledger
    dataset: Dataset
    validation: Validation
    """How the base experiment's models are scored."""
    backbone_folder: Path
    """The base experiment's backbone; not there if every trial trains its own."""
    backbone: BackboneConfig
    tracker: Tracker
    parent: RunLog

    def trial(self, number: int, point: Point) -> "Trial":
        """Return a trial with the settings of a point."""
        folder, sweep = self.ledger.trial_folder(number), self.ledger.sweep
        experiment, method = apply(point, sweep.experiment), get_method(sweep.method)
        backbone_folder, backbone = self.backbone_folder, self.backbone
        if sweep.trains_backbone:
            backbone_folder = folder / "backbone" / "model"
            backbone = backbone_config(method.backbone, experiment.backbone)
        diffuser = None
        if method.diffuser is not None:
            training = diffuser_training(experiment, method.diffuser, backbone)
            diffuser = located(training, experiment, self.dataset, backbone_folder)
        settings = dataclasses.replace(
            self.validation.settings,
            context_transitions=experiment.diffuser.context_transitions,
            config=experiment.adaptation,
        )
        validation = dataclasses.replace(
            self.validation, settings=settings, backbone_folder=backbone_folder if diffuser else None
        )
        run = self.run_of(number, point)
        return Trial(self, number, point, experiment, backbone_folder, backbone, diffuser, validation, run)

    def run_of(self, number: int, point: Point) -> RunLog:
        """Return the MLflow run of a trial, the same one whenever the sweep goes on."""
        identity = f"{self.ledger.folder.name}/{trial_name(number)}"
        run = self.tracker.run(trial_name(number), identity, self.parent, {STAGE_TAG: "trial"})
        if self.ledger.sweep.stopping != "population":  # whose settings change
            run.log_params(point)
        return run


@dataclass(frozen=True)
class Trial:
    """A trial at work."""

    plan: SweepPlan
    number: int
    point: Point
    experiment: Experiment
    backbone_folder: Path
    backbone: BackboneConfig
    diffuser: DiffuserTraining | None
    validation: Validation
    run: RunLog

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return self.plan.ledger.trial_folder(self.number)

    @property
    def model(self) -> Path:
        """The model that is scored."""
        return self.folder / "diffuser" / "model" if self.diffuser else self.backbone_folder

    @property
    def _trained_models(self) -> list[Path]:
        models = [self.backbone_folder] if self.plan.ledger.sweep.trains_backbone else []
        return [*models, self.model] if self.diffuser else models

    @property
    def steps(self) -> int:
        """Updates of the training that is scored; 0 if the trial only adapts."""
        if self.diffuser:
            return self.diffuser.optimisation.steps
        return self.experiment.pretraining.optimisation.steps if self.plan.ledger.sweep.trains_backbone else 0

    def run_to_end(self, pool: RolloutPool) -> None:
        """Train, score and stop; what an earlier process did of it is not done again."""
        ledger, scores = self.plan.ledger, self.plan.ledger.scores(self.number)
        state = "finished"
        try:
            for step in ledger.sweep.milestones(self.steps):
                if step not in scores:
                    scores[step] = self.train_and_score(step, pool)
                    ledger.write_scores(self.number, scores)
                    self.log(scores)
                if step < self.steps and stops(ledger, self.number, step, self.steps):
                    state = "stopped"
                    break
        except NonFiniteGradientError as error:
            state = "diverged"
            self.run.set_tag("promptdiffuser.error", str(error)[:500])
        self.end(scores, state)

    def train_and_score(self, step: int, pool: RolloutPool) -> Row:
        """Train until a milestone and return its score, with what it cost since the milestone before."""
        started = time.perf_counter()
        if self.plan.ledger.sweep.trains_backbone:
            # Below a diffuser it is not scored itself, and there only once.
            self._train_backbone(until=None if self.diffuser else step)
        if self.diffuser:
            train_in_process(self._job(self.diffuser, self.model.parent), until=step)
        score = self.validation.score(
            self.model, pool, self.folder / "adapted", self._few_shot() if step == self.steps else None
        )
        return score_metrics("validation", score) | {
            "time/seconds": time.perf_counter() - started,
            "cost/environment_steps": self._steps_of_a_score(),
            "cost/trained_parameters": sum(map(count_parameters, self._trained_models)),
        }

    def log(self, scores: Mapping[int, Row]) -> None:
        """Log the scores by update; what adds up is logged when the trial ends."""
        self.run.log_history(
            [
                {"step": step} | {name: value for name, value in score.items() if name not in SUMMED}
                for step, score in sorted(scores.items())
            ]
        )

    def end(self, scores: Mapping[int, Row], state: str) -> None:
        """Write the trial's row and close its run."""
        ledger = self.plan.ledger
        last = max(scores, default=0)
        scored: Row = scores[last] if state != "diverged" else {}
        summed = {name: sum(score[name] for score in scores.values()) for name in SUMMED}
        row: Row = dict.fromkeys((*SUMMARISED, "cost/trained_parameters")) | self.point | scored | summed
        row |= {"cost/gradient_steps": last, "state": state, "run": self.run.run_id}
        ledger.write_result(self.number, row)
        self.run.set_tag("promptdiffuser.state", state)
        self.run.log_metrics({name: row[name] for name in (*summed, "cost/gradient_steps")}, step=last)
        self.run.finish()

    def _train_backbone(self, until: int | None) -> None:
        folder = self.folder / "backbone"
        if until is None and (folder / "model").is_dir():
            return
        job = self._job(backbone_training(self.experiment, self.plan.dataset, self.backbone), folder)
        train_on_cluster(job, self.experiment.cluster, until=until)

    def _few_shot(self) -> dict[int, DiffuserTraining] | None:
        """Return the diffuser's few-shot stage on every validation task, for methods that make it."""
        if self.diffuser is None or not get_method(self.plan.ledger.sweep.method).few_shot_updates:
            return None
        return {
            task: few_shot_training(self.diffuser, self.experiment, self.model, task)
            for task in self.plan.dataset.family.validation_tasks
        }

    def _job(self, training: Any, folder: Path) -> TrainJob:
        tasks = self.plan.dataset.family.train_tasks
        return TrainJob(training, self.plan.dataset, tasks, self.experiment.quality, folder, self.run)

    def _steps_of_a_score(self) -> int:
        """Return the steps of a score's episodes, if none ends early."""
        protocol, family = self.validation.protocol, self.plan.dataset.family
        episodes = protocol.prompts * protocol.episodes_per_prompt * len(family.validation_tasks)
        return episodes * (protocol.horizon or family.horizon)
