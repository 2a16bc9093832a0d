"""How policies are judged: how many prompts and episodes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ProtocolConfig:
    """Size of an evaluation. The public Prompt-DT draws one prompt an evaluation, so prompt variance goes unseen."""

    prompts: int = 16
    """Prompts a method makes for each task."""
    episodes_per_prompt: int = 4
    """Episodes run with each prompt."""
    few_shot_episodes: int = 5
    """Expert episodes of a target task that methods may see (the released prompt files hold 5)."""

    def __post_init__(self) -> None:
        """Refuse an empty evaluation."""
        for name in ("prompts", "episodes_per_prompt", "few_shot_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} must be at least 1, got {getattr(self, name)}")
