"""How policies are judged: which episodes are run, with which prompts, targets and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from promptdiffuser.data.few_shot import FewShotConfig
from promptdiffuser.rng import SIMULATOR_SEEDS, seed_at
from promptdiffuser.rollout.stepping import EpisodeRequest
from promptdiffuser.tasks.family import TaskFamily
from promptdiffuser.training.precision import Precision, check_precision


@dataclass(frozen=True)
class EvaluationRequest(EpisodeRequest):
    """One episode of an adapted policy."""

    method: str
    prompt: int
    """Number of the prompt among those that the method made for the task."""
    episode: int
    """Number of the episode with this prompt."""
    target_return: float
    """Return asked for at the first step, in the unit of the reward."""


@dataclass(frozen=True)
class ProtocolConfig:
    """Size and manner of an evaluation."""

    prompts: int = 16
    """Prompts a method makes for each task. The public Prompt-DT draws one an evaluation, so prompt variance goes
    unseen."""
    episodes_per_prompt: int = 4
    """Episodes run with each prompt."""
    prompt_use: Literal["fixed", "redrawn"] = "fixed"
    """fixed: each prompt serves all of its episodes, as in the public Prompt-DT, and its own merit can be told.
    redrawn: every episode has a prompt of its own, as where prompts are sampled at each reset; `prompts` times
    `episodes_per_prompt` are made."""
    target_returns: tuple[float, ...] = ()
    """Returns asked for at the first step, each a whole evaluation of its own; the family's target if none is given.
    The first is what methods are compared at."""
    horizon: int = 0
    """Steps after which an episode is cut; 0 is the family's."""
    seed: int = 0
    """Start states are addressed below this seed, not the experiment's: experiments of different seeds meet the same
    ones, and so do all methods, so that differences are paired."""
    precision: Precision = "fp32"
    """Number format of the backbone's products; bf16 is faster and rounds actions by about 0.4 %."""
    few_shot: FewShotConfig = field(default_factory=FewShotConfig)
    """What methods may see of a target task."""

    def __post_init__(self) -> None:
        """Refuse an empty evaluation and unknown names."""
        _check_counts("evaluation", self)
        check_precision("evaluation.precision", self.precision)
        if self.prompt_use not in ("fixed", "redrawn"):
            raise ValueError(f"evaluation.prompt_use must be fixed or redrawn, got {self.prompt_use!r}")
        if self.horizon < 0:
            raise ValueError(f"evaluation.horizon must be 0 (the family's) or more, got {self.horizon}")
        if len(set(self.target_returns)) < len(self.target_returns):
            raise ValueError(f"evaluation.target_returns must name each return once, got {self.target_returns}")

    @property
    def num_prompts(self) -> int:
        """Prompts that a method must make for each task."""
        return self.prompts * (self.episodes_per_prompt if self.prompt_use == "redrawn" else 1)

    def targets(self, family: TaskFamily) -> tuple[float, ...]:
        """Return the target returns, the one that methods are compared at first."""
        return self.target_returns or (family.target_return,)

    def requests(self, family: TaskFamily, methods: Sequence[str], tasks: Sequence[int]) -> list[EvaluationRequest]:
        """Return every episode, those of a method and task together.

        The seeds name neither method nor target: all meet the same initial states.
        """
        return [
            EvaluationRequest(
                task=task,
                seed=seed_at(self.seed, "evaluate", task, number, episode) % SIMULATOR_SEEDS,
                method=method,
                prompt=number if self.prompt_use == "fixed" else number * self.episodes_per_prompt + episode,
                episode=episode if self.prompt_use == "fixed" else 0,
                target_return=target,
            )
            for method in methods
            for task in tasks
            for target in self.targets(family)
            for number in range(self.prompts)
            for episode in range(self.episodes_per_prompt)
        ]


@dataclass(frozen=True)
class ValidationConfig:
    """Size of the evaluations on validation tasks, of snapshots and of a sweep's trials; else as the evaluation."""

    prompts: int = 5
    """Prompts made for each task."""
    episodes_per_prompt: int = 2
    """Episodes run with each prompt."""

    def __post_init__(self) -> None:
        """Refuse an empty validation."""
        _check_counts("validation", self)

    def protocol(self, evaluation: ProtocolConfig) -> ProtocolConfig:
        """Return the protocol: all but the size is as in the evaluation, at the target that methods are compared at."""
        return replace(
            evaluation,
            prompts=self.prompts,
            episodes_per_prompt=self.episodes_per_prompt,
            target_returns=evaluation.target_returns[:1],
        )


def _check_counts(section: str, config: ProtocolConfig | ValidationConfig) -> None:
    for name in ("prompts", "episodes_per_prompt"):
        if getattr(config, name) < 1:
            raise ValueError(f"{section}.{name} must be at least 1, got {getattr(config, name)}")
