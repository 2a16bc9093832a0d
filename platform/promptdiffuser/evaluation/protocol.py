"""How policies are judged: how many prompts and episodes."""

from dataclasses import dataclass, field

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
        for name in ("prompts", "episodes_per_prompt"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} must be at least 1, got {getattr(self, name)}")
