"""Settings of the adaptation methods, composed of what each method's file declares."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AdaptationConfig:
    """Settings of the adaptation methods; none is chosen on test tasks."""
