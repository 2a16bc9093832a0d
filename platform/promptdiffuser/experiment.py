"""An experiment: one typed object that composes every component's configuration.

A recipe returns one, tyro makes its fields command-line options, and it is saved as JSON with every run. Values that
cannot work raise at construction and name the field; nothing has been started by then.
"""

import json
import logging
import math
import re
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from promptdiffuser.data.plans import RoundsConfig
from promptdiffuser.diffusion.process import DiffusionConfig, visited_steps
from promptdiffuser.errors import UserError
from promptdiffuser.keys import NOT_DECIDING
from promptdiffuser.methods import METHODS
from promptdiffuser.methods.config import compose_adaptation_config
from promptdiffuser.models.backbone import BackboneConfig
from promptdiffuser.models.denoiser import DenoiserConfig
from promptdiffuser.rollout.protocol import ProtocolConfig, ValidationConfig
from promptdiffuser.tasks import get_family
from promptdiffuser.tasks.experts import Quality
from promptdiffuser.training.backbone_objective import BackboneLossConfig
from promptdiffuser.training.engine import OptimisationConfig
from promptdiffuser.training.guidance import GuidanceConfig
from promptdiffuser.training.optimised_prompts import OptimisedPromptsConfig

if TYPE_CHECKING:  # Its fields are known once all methods are, the user's own among them.
    AdaptationConfig: TypeAlias = Any
else:
    AdaptationConfig = compose_adaptation_config(__name__)

SCHEMA_VERSION = 1
"""Of saved experiments; raised when a field changes its name or meaning."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CollectionConfig:
    """How the offline dataset is collected."""

    episodes_per_task: int = 30
    """Episodes of every task and quality."""
    qualities: tuple[Quality, ...] = ("expert",)
    """Qualities to collect: expert, medium, random, mixed (tasks/experts.py says how each is made)."""
    seed: int = 0
    """Every random number of the dataset is addressed below this seed, not below the experiment's, so that experiments
    of different seeds learn from the same episodes and can be compared."""

    def __post_init__(self) -> None:
        """Refuse an empty dataset."""
        if self.episodes_per_task < 1:
            raise ValueError(f"collection.episodes_per_task must be at least 1, got {self.episodes_per_task}")
        if not self.qualities or len(set(self.qualities)) < len(self.qualities):
            raise ValueError(f"collection.qualities must name each quality once, got {self.qualities}")


@dataclass(frozen=True)
class PretrainingConfig:
    """Pre-training of the backbone on the training tasks."""

    statistics: Literal["training", "all"] = "training"
    """Tasks whose episodes the states are normalised by: the training tasks, or all of the family, test tasks too, as
    the public code does; for parity alone, because it lets the backbone know of the test tasks."""
    loss: BackboneLossConfig = field(default_factory=BackboneLossConfig)
    optimisation: OptimisationConfig = field(default_factory=OptimisationConfig)


@dataclass(frozen=True)
class DiffuserTrainingConfig:
    """Multi-task training of the diffuser on the training tasks, then few updates on each target task."""

    batch_size: int = 256
    """Prompts in the denoising loss of one update."""
    guidance_start: int = 0
    """Multi-task update from which the downstream loss guides; before it the denoising loss trains alone."""
    denoising_steps: int = 0
    """Updates of the denoising loss alone, as a training of its own that `multi_task` then goes on from with new
    moments of Adam. It does not depend on the guidance, so experiments that differ in that alone share it.
    0: `multi_task` starts from new weights."""
    context_episodes: int = 5
    """Episodes of a task that its context is read from."""
    context_transitions: int = 8
    """Transitions of each of these episodes that the context sees."""
    optimised_prompts: OptimisedPromptsConfig = field(default_factory=OptimisedPromptsConfig)
    """How training prompts are tuned for the diffuser that learns from tuned ones."""
    multi_task: OptimisationConfig = field(default_factory=OptimisationConfig)
    few_shot: OptimisationConfig = field(default_factory=OptimisationConfig)
    held_out_episodes: int = 0
    """Last episodes of each few-shot set that the few-shot updates do not see. The snapshot with the lowest downstream
    loss on them becomes the model (`--diffuser.few-shot.snapshot-every 50 --diffuser.few-shot.use best`)."""

    def __post_init__(self) -> None:
        """Refuse empty batches and a guidance that would never act."""
        for name in ("batch_size", "context_episodes", "context_transitions"):
            if getattr(self, name) < 1:
                raise ValueError(f"diffuser.{name} must be at least 1, got {getattr(self, name)}")
        if self.denoising_steps < 0:
            raise ValueError(f"diffuser.denoising_steps must not be negative, got {self.denoising_steps}")
        if self.held_out_episodes < 0:
            raise ValueError(f"diffuser.held_out_episodes must not be negative, got {self.held_out_episodes}")
        if (self.held_out_episodes > 0) != (self.few_shot.use == "best"):
            raise ValueError(
                "diffuser.held_out_episodes and diffuser.few_shot.use best go together: the best snapshot is chosen on "
                f"them, as a target task has no validation tasks; got {self.held_out_episodes} and {self.few_shot.use}"
            )
        if self.few_shot.snapshot_every and not self.held_out_episodes:
            raise ValueError(
                "diffuser.few_shot.snapshot_every must be 0 without diffuser.held_out_episodes: a target task has no "
                "validation tasks to score snapshots on"
            )
        if not 0 <= self.guidance_start <= self.multi_task.steps:
            raise ValueError(
                f"diffuser.guidance_start must be between 0 and diffuser.multi_task.steps "
                f"({self.multi_task.steps}), got {self.guidance_start}"
            )


BLOCK_LIMIT_S = 3600.0
"""Default time limit of a block of episodes: blocks take seconds to minutes, so only one that hangs takes an hour."""


@dataclass(frozen=True)
class ClusterConfig:
    """How much of the Ray cluster an experiment takes.

    Results do not depend on it, so it is not part of a stage, except that only streamed trainings have rounds.
    """

    train_workers: int = 1
    """Ray Train workers; of an elastic training the fewest."""
    max_train_workers: int = 0
    """Most workers of an elastic training, which takes what the cluster has; 0 trains with a fixed number."""
    cpus_per_worker: int = 1
    """CPUs and threads of a Train worker."""
    gpus_per_worker: float = 0.0
    """GPUs of a Train worker and of a few-shot training; a fraction lets several trainings share one, such as those of
    several seeds."""
    data: Literal["resident", "streaming"] = "resident"
    """resident: each Train worker keeps its share of the episodes as tensors on its device. streaming: Ray Data tasks
    cut the windows of coming updates from the files, for data larger than memory. The batches are the
    same, except where a dataset is larger than a round (`rounds.env_steps`)."""
    rollout_actors: int = 2
    """Actors that step the simulator, one CPU each."""
    gpus_per_actor: float = 0.0
    """GPUs of a rollout actor, for the backbone; a fraction lets several actors share one."""
    block_limit_s: float = BLOCK_LIMIT_S
    """Seconds after which a rollout actor that has not finished a block of episodes is killed and started again; the
    block then runs once more, three times in all."""
    local_cpus: int = 4
    """Logical CPUs that a local cluster declares. On two cores 4 is right: Train workers and the Ray Data tasks that
    feed them must fit together, or both wait for ever."""

    def __post_init__(self) -> None:
        """Refuse a cluster without workers."""
        for name in ("train_workers", "cpus_per_worker", "rollout_actors", "local_cpus"):
            if getattr(self, name) < 1:
                raise ValueError(f"cluster.{name} must be at least 1, got {getattr(self, name)}")
        if self.max_train_workers != 0 and self.max_train_workers < self.train_workers:
            raise ValueError(
                f"cluster.max_train_workers must be 0 or at least cluster.train_workers ({self.train_workers}), "
                f"got {self.max_train_workers}"
            )
        if not 0 < self.block_limit_s < math.inf:
            raise ValueError(f"cluster.block_limit_s must be positive and finite, got {self.block_limit_s}")
        for name in ("gpus_per_worker", "gpus_per_actor"):
            gpus = getattr(self, name)
            if gpus < 0 or (gpus > 1 and gpus % 1):
                raise ValueError(f"cluster.{name} must be a fraction of one or a whole number, got {gpus}")

    @property
    def gpus_per_task(self) -> float:
        """GPUs of a piece of work that is one process, such as an adaptation: a worker's, at most one."""
        return min(1.0, self.gpus_per_worker)


@dataclass(frozen=True)
class Experiment:
    """Everything that decides what an experiment computes."""

    name: str
    """Name of the experiment: the MLflow experiment and the folder below the outputs."""
    family: str = "cheetah-vel"
    """Task family."""
    seed: int = 0
    """Every random number of the experiment is addressed below this seed, except those of the dataset
    (`collection.seed`) and the start states of the evaluation (`evaluation.seed`)."""
    methods: tuple[str, ...] = ("prompt-dt", "other-task-prompt", "prompt-diffuser", "prompt-diffuser-context")
    """Methods to compare."""
    collection: CollectionConfig = field(default_factory=CollectionConfig)
    quality: Quality = "expert"
    """Quality of the episodes that the backbone and the diffuser learn from."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    diffuser: DiffuserTrainingConfig = field(default_factory=DiffuserTrainingConfig)
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    evaluation: ProtocolConfig = field(default_factory=ProtocolConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata=NOT_DECIDING)

    def __post_init__(self) -> None:
        """Refuse names that do not exist and values that contradict each other."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name must be usable as a folder, got {self.name!r}")
        family = get_family(self.family)
        if not self.methods:
            raise ValueError("methods must name at least one method")
        if unknown := [method for method in self.methods if method not in METHODS]:
            raise ValueError(f"methods names an unknown method {unknown[0]!r}; {METHODS.suggest(unknown[0])}")
        for name in self.methods:
            if lacking := [q for q in METHODS[name].qualities if q not in self.collection.qualities]:
                raise ValueError(
                    f"method {name} needs {lacking[0]} episodes, which collection.qualities "
                    f"({', '.join(self.collection.qualities)}) lacks; add it or leave the method out"
                )
        if self.backbone.history > family.horizon or self.backbone.prompt_length >= family.horizon:
            raise ValueError(
                f"backbone.history ({self.backbone.history}) must fit the horizon of {family.name} ({family.horizon}) "
                f"and backbone.prompt_length ({self.backbone.prompt_length}) must be below it"
            )
        longest = self.backbone.window_steps or family.horizon
        for name, steps in (
            ("pretraining.loss.window_steps", self.pretraining.loss.window_steps),
            ("guidance.window_steps", self.guidance.window_steps),
        ):
            if steps > longest:
                raise ValueError(f"{name} ({steps}) must not exceed the {longest} steps that the backbone takes")
        if self.evaluation.horizon > family.horizon:
            raise ValueError(
                f"evaluation.horizon ({self.evaluation.horizon}) must not exceed the horizon of {family.name} "
                f"({family.horizon}), which the backbone knows no steps beyond"
            )
        if self.evaluation.few_shot.episodes > self.collection.episodes_per_task:
            raise ValueError(
                f"evaluation.few_shot.episodes ({self.evaluation.few_shot.episodes}) must not exceed "
                f"collection.episodes_per_task ({self.collection.episodes_per_task})"
            )
        if self.diffuser.held_out_episodes >= self.evaluation.few_shot.episodes:
            raise ValueError(
                f"diffuser.held_out_episodes ({self.diffuser.held_out_episodes}) must be below "
                f"evaluation.few_shot.episodes ({self.evaluation.few_shot.episodes}), or nothing is left to learn from"
            )
        if self.backbone.prompt_length % self.adaptation.prompt_bandit.slots:
            raise ValueError(
                f"adaptation.prompt_bandit.slots ({self.adaptation.prompt_bandit.slots}) must divide "
                f"backbone.prompt_length ({self.backbone.prompt_length})"
            )
        if self.guidance.path_steps > (num_levels := len(visited_steps(self.diffusion))):
            raise ValueError(
                f"guidance.path_steps ({self.guidance.path_steps}) must not exceed the {num_levels} levels that "
                "generation visits (diffusion.sampling_steps, or diffusion.steps)"
            )
        for name, quality in (
            ("quality", self.quality),
            ("evaluation.few_shot.quality", self.evaluation.few_shot.quality),
        ):
            if quality not in self.collection.qualities:
                raise ValueError(
                    f"{name} is {quality}, which collection.qualities ({', '.join(self.collection.qualities)}) lacks"
                )

    def settings(self) -> dict[str, Any]:
        """Return all that decides what is computed: all but the cluster."""
        return {name: value for name, value in asdict(self).items() if name != "cluster"}

    def to_json(self) -> str:
        """Return the experiment as JSON; `from_json` restores an equal object."""
        return json.dumps({"schema_version": SCHEMA_VERSION} | asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> "Experiment":
        """Restore an experiment. Newer fields, which it lacks, take their defaults and are named in a warning.

        Raises:
            UserError: A field is unknown, mistyped, or missing without a default, or a newer version saved it.
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise UserError(f"the experiment is not valid JSON: {error}") from error
        if isinstance(document, dict) and (version := document.pop("schema_version", 0)) != SCHEMA_VERSION and version:
            raise UserError(
                f"the experiment has schema version {version}, this version of promptdiffuser reads {SCHEMA_VERSION}; "
                "run it with the version that saved it"
            )
        experiment: Experiment = _restore(Experiment, document, "experiment")
        return experiment


def _restore(hint: Any, value: Any, path: str) -> Any:
    """Return a JSON value as the type that a field is declared with."""
    if is_dataclass(hint):
        return _restore_object(hint, value, path)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_restore(get_args(hint)[0], item, f"{path}[{number}]") for number, item in enumerate(value))
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise UserError(f"{path} must be one of {', '.join(get_args(hint))}, got {value!r}")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise UserError(f"{path} must be of type {getattr(hint, '__name__', hint)}, got {value!r}")
    return value


def _restore_object(cls: Any, document: Any, path: str) -> Any:
    if not isinstance(document, dict):
        raise UserError(f"{path} must be an object, got {document!r}")
    hints = get_type_hints(cls)
    names = [declared.name for declared in fields(cls)]
    if unknown := sorted(document.keys() - set(names)):
        remedy = "; settings of a method of your own need its --plugin" if cls is AdaptationConfig else ""
        raise UserError(f"{path} has no field {unknown[0]!r}; its fields are {', '.join(names)}{remedy}")
    for missing in (declared for declared in fields(cls) if declared.name not in document):
        if missing.default is MISSING and missing.default_factory is MISSING:
            raise UserError(f"{path} lacks the field {missing.name!r}")
        log.warning("%s lacks the field %r, which takes its default", path, missing.name)
    values = {name: _restore(hints[name], document[name], f"{path}.{name}") for name in names if name in document}
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
