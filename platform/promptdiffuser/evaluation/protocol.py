"""How policies are judged: how many prompts and episodes."""

from dataclasses import dataclass, field, replace

from promptdiffuser.data.few_shot import FewShotConfig


@dataclass(frozen=True)
class ProtocolConfig:
    """Size of an evaluation. The public Prompt-DT draws one prompt an evaluation, so prompt variance goes unseen."""

    prompts: int = 16
    """Prompts a method makes for each task."""
    episodes_per_prompt: int = 4
    """Episodes run with each prompt."""
    few_shot: FewShotConfig = field(default_factory=FewShotConfig)
    """What methods may see of a target task."""

    def __post_init__(self) -> None:
        """Refuse an empty evaluation."""
        _check_counts("evaluation", self)


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
        """Return the protocol: what methods may see of a task is what they may see in the evaluation."""
        return replace(evaluation, prompts=self.prompts, episodes_per_prompt=self.episodes_per_prompt)


def _check_counts(section: str, config: ProtocolConfig | ValidationConfig) -> None:
    for name in ("prompts", "episodes_per_prompt"):
        if getattr(config, name) < 1:
            raise ValueError(f"{section}.{name} must be at least 1, got {getattr(config, name)}")
