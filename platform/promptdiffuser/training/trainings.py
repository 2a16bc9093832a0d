"""The trainings of an experiment: what the engine needs to train a backbone or a diffuser, and where the result goes.

A training is data: it travels to Ray Train workers and few-shot tasks, or to a plain loop on a bare machine.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.plans import Address, EpisodeIndex, Planner, Rounds
from promptdiffuser.data.windows import PromptPool, ResidentEpisodes, WindowSource, cut_pool_pieces
from promptdiffuser.diffusion.process import DiffusionConfig
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.keys import NOT_DECIDING
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.models.denoiser import DenoiserConfig
from promptdiffuser.tasks import get_family
from promptdiffuser.training.backbone_objective import BackboneLearning, BackboneLossConfig
from promptdiffuser.training.checkpoint import (
    keep_last_checkpoints,
    newest_valid_checkpoint,
    save_checkpoint,
    write_json,
)
from promptdiffuser.training.diffuser_objective import DiffuserLearning
from promptdiffuser.training.engine import Engine, LearningTask, OptimisationConfig, identity_reduce
from promptdiffuser.training.few_shot import HELD_OUT_LOSS, score_snapshot
from promptdiffuser.training.guidance import GuidanceConfig
from promptdiffuser.training.model_folders import (
    build_backbone,
    build_diffuser,
    diffuser_document,
    load_backbone,
    load_diffuser,
    save_backbone,
    save_diffuser,
)
from promptdiffuser.training.optimised_prompts import with_optimised_prompts
from promptdiffuser.training.snapshots import use_best_snapshot

LOGS_PER_CHECKPOINT = 10

History = list[dict[str, float]]


class Training(Protocol):
    """One training run."""

    @property
    def optimisation(self) -> OptimisationConfig:
        """How the engine trains."""

    @property
    def prompt_length(self) -> int:
        """Steps in a prompt."""

    @property
    def context_transitions(self) -> int:
        """Transitions of each episode that the prompt pool keeps."""

    @property
    def held_out_episodes(self) -> int:
        """Last episodes that the updates do not see, for choosing the best snapshot by."""

    def normaliser(self) -> Normaliser:
        """Return the statistics that the data is normalised with."""

    def planner(self, index: EpisodeIndex) -> Planner:
        """Return what draws the history windows of every update."""

    def learning_task(self, windows: WindowSource, pool: PromptPool, device: torch.device) -> LearningTask:
        """Build the model and its task on the device that the data is on."""

    def save(self, folder: Path, task: LearningTask, weights: dict[str, Tensor]) -> None:
        """Write the trained model."""


@dataclass(frozen=True)
class BackboneTraining:
    """Pre-training of a backbone on the training tasks."""

    family: str
    seed: int
    backbone: BackboneConfig
    loss: BackboneLossConfig
    optimisation: OptimisationConfig
    statistics: dict[str, Tensor]
    """Tensors of the normaliser."""
    dataset_digest: str
    rounds: Rounds = field(default_factory=Rounds)
    context_transitions: int = 0

    @property
    def prompt_length(self) -> int:
        """Steps in a prompt."""
        return self.backbone.prompt_length

    @property
    def held_out_episodes(self) -> int:
        """None: whole tasks are set aside for validation."""
        return 0

    def normaliser(self) -> Normaliser:
        """Return the statistics of the training tasks."""
        return Normaliser(**self.statistics)

    def planner(self, index: EpisodeIndex) -> Planner:
        """Draw windows of the configured size, or of the longest that the backbone takes."""
        address, steps = (self.seed, "pretrain"), self.loss.window_steps or self.backbone.window_steps
        return Planner(index, self.loss.batch_size, steps, address, rounds=self.rounds)

    def learning_task(self, windows: WindowSource, pool: PromptPool, device: torch.device) -> BackboneLearning:
        """Build a new backbone and its task."""
        model = build_backbone(self.backbone, get_family(self.family), self.seed, "pretrain").to(device)
        return BackboneLearning(model, windows, pool, self.loss, self.planner(pool.index))

    def save(self, folder: Path, task: LearningTask, weights: dict[str, Tensor]) -> None:
        """Write the backbone with its normaliser."""
        document = {
            "family": self.family,
            "config": asdict(self.backbone),
            "dataset_digest": self.dataset_digest,
            "steps": self.optimisation.steps,
        }
        save_backbone(folder, weights, document, self.normaliser())


@dataclass(frozen=True)
class DiffuserTraining:
    """Training of a diffuser: multi-task from new weights, or few-shot from the weights in `start_from`."""

    family: str
    seed: int
    stage: str
    """`multi-task`, or `few-shot-TASK`: part of the address of every random number."""
    denoiser: DenoiserConfig
    diffusion: DiffusionConfig
    guidance: GuidanceConfig
    with_context: bool
    batch_size: int
    guidance_start: int
    context_episodes: int
    context_transitions: int
    optimisation: OptimisationConfig
    prompt_length: int
    window_steps: int | None
    """Steps of the history windows that the backbone sees; None for whole episodes."""
    held_out_episodes: int = 0
    """Last episodes that the updates do not see; the snapshot that is best on them becomes the model."""
    # What is read decides by what it contains, not by where it lies, so these are no settings.
    dataset_digest: str = field(default="", metadata=NOT_DECIDING)
    rounds: Rounds = field(default_factory=Rounds, metadata=NOT_DECIDING)
    backbone_folder: Path = field(default=Path(), metadata=NOT_DECIDING)
    start_from: Path | None = field(default=None, metadata=NOT_DECIDING)
    optimised_prompts: Path | None = field(default=None, metadata=NOT_DECIDING)
    """Folder of tuned prompts that are learnt in the place of the episodes' own."""

    def normaliser(self) -> Normaliser:
        """Return the statistics saved with the backbone."""
        return load_backbone(self.backbone_folder, get_family(self.family), torch.device("cpu"))[1]

    @property
    def address(self) -> Address:
        """Where this training's randomness lives."""
        return self.seed, "diffuser", self.stage

    def planner(self, index: EpisodeIndex) -> Planner:
        """Draw what the downstream loss sees."""
        num_seen = len(index) - self.held_out_episodes
        return Planner(
            index.select(slice(num_seen)),
            self.guidance.batch_size,
            self.window_steps,
            (*self.address, "dt"),
            num_context=self.context_episodes,
            rounds=self.rounds,
        )

    def learning_task(self, windows: WindowSource, pool: PromptPool, device: torch.device) -> DiffuserLearning:
        """Build the diffuser and its task through the frozen backbone."""
        family = get_family(self.family)
        backbone, normaliser = load_backbone(self.backbone_folder, family, device)
        if self.optimised_prompts is not None:
            pool = with_optimised_prompts(pool, self.optimised_prompts)
        if self.start_from is None:
            space = PromptSpace.fit(normaliser, pool.prompts, family.horizon)
            diffuser = build_diffuser(
                self.denoiser, self.diffusion, space, family, self.with_context, self.seed, "diffuser"
            )
        else:
            diffuser = load_diffuser(self.start_from, family, device)
        return DiffuserLearning(
            diffuser,
            backbone,
            windows,
            pool,
            self.guidance,
            self.planner(pool.index),
            batch_size=self.batch_size,
            guidance_start=self.guidance_start,
            num_updates=self.optimisation.steps,
            address=self.address,
        )

    def save(self, folder: Path, task: LearningTask, weights: dict[str, Tensor]) -> None:
        """Write the diffuser with its prompt space and its backbone's normaliser."""
        assert isinstance(task, DiffuserLearning)
        document = diffuser_document(
            get_family(self.family),
            self.denoiser,
            self.diffusion,
            self.with_context,
            self.context_transitions,
            stage=self.stage,
            parameters=sum(parameter.numel() for parameter in task.model.parameters()),
            dataset_digest=self.dataset_digest,
        )
        save_diffuser(folder, weights, document, task.diffuser.space, self.normaliser())


def make_resident(training: Training, episodes: Episodes, device: torch.device) -> tuple[ResidentEpisodes, PromptPool]:
    """Prepare all episodes for a training without workers; episodes must be ordered by task."""
    normaliser = training.normaliser()
    pieces = cut_pool_pieces(episodes, training.prompt_length, training.context_transitions)
    numbers = torch.arange(len(episodes)).numpy()
    return (
        ResidentEpisodes.build(episodes, numbers, normaliser, device),
        PromptPool.build(pieces, normaliser, device),
    )


def train(
    training: Training,
    task: LearningTask,
    folder: Path,
    sum_over_workers: Callable[[Tensor], Tensor] = identity_reduce,
    is_writer: bool = True,
    on_checkpoint: Callable[[History], None] = lambda history: None,
    until: int | None = None,
) -> History:
    """Train to the end, resuming from the newest valid checkpoint below `folder`, and write `folder`/model.

    Every worker calls this; the writer alone writes checkpoints, snapshots, `progress.json` and the model.
    `on_checkpoint` gets the whole history of metrics (keys `step`, `train/...` and `time/...`) at every checkpoint,
    on every worker. With `until` the training pauses after that update; pauses change no number of it.
    """
    config, checkpoints = training.optimisation, folder / "checkpoints"
    engine, history = Engine(task, config, sum_over_workers), History()
    if (checkpoint := newest_valid_checkpoint(checkpoints, engine.parameters.vector.device)) is not None:
        engine.resume(checkpoint)
        history = checkpoint.documents["progress"]["history"]
    started_at, end = engine.step, min(until or config.steps, config.steps)
    log_every = max(1, config.checkpoint_every // LOGS_PER_CHECKPOINT)
    pending, started = History(), time.perf_counter()
    while engine.step < end:
        step = engine.step + 1
        at_end = step == end
        at_checkpoint = at_end or step % config.checkpoint_every == 0
        at_log = at_checkpoint or step % log_every == 0
        pending.append(engine.advance(examine=at_log))
        if at_log:
            seconds = time.perf_counter() - started
            times = {"time/seconds": seconds, "time/steps_per_second": len(pending) / seconds}
            history.append(_mean(pending) | times | {"step": engine.step})
            pending, started = History(), time.perf_counter()
            if is_writer:
                write_progress(folder, history, config.steps)
        if is_writer and config.snapshot_every and (at_end or engine.step % config.snapshot_every == 0):
            snapshot, weights = snapshot_folder(folder, engine.step), engine.trained_tensors()
            training.save(snapshot, task, weights)
            if training.held_out_episodes:
                score_snapshot(task, snapshot, weights)
        if at_checkpoint:
            if is_writer:
                progress = {"step": engine.step, "history": history}
                save_checkpoint(
                    checkpoints / f"step-{engine.step:08d}", {"engine": engine.state()}, {"progress": progress}
                )
                keep_last_checkpoints(checkpoints, config.keep_checkpoints)
            on_checkpoint(history)
    if started_at == end:
        # Nothing was left to do; whoever keeps the metrics may still lack them.
        on_checkpoint(history)
    if is_writer:
        training.save(folder / "model", task, engine.trained_tensors())
        if training.held_out_episodes:
            use_best_snapshot(folder, HELD_OUT_LOSS)
    return history


def snapshot_folder(folder: Path, step: int) -> Path:
    """Return where a training leaves the model of a step for scoring on validation tasks."""
    return folder / "snapshots" / f"step-{step:08d}"


def write_progress(folder: Path, history: History, steps: int) -> None:
    """Leave a note for whoever watches the training from another process; seconds add up over interruptions."""
    note = {
        "step": history[-1]["step"],
        "steps": steps,
        "seconds": sum(entry["time/seconds"] for entry in history),
        "losses": {
            name.removeprefix("train/"): value for name, value in history[-1].items() if name.startswith("train/loss")
        },
    }
    write_json(folder / "progress.json", note)


def _mean(metrics: History) -> dict[str, float]:
    """Average each metric over the updates that have it; guidance metrics start in the middle of a training."""
    names = {name: None for entry in metrics for name in entry}
    values = {name: [entry[name] for entry in metrics if name in entry] for name in names}
    return {f"train/{name}": sum(v) / len(v) for name, v in values.items()}
