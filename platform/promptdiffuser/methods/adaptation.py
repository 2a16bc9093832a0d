"""What every adaptation method is given and must return."""

from collections.abc import Callable
from dataclasses import dataclass

from promptdiffuser.data.windows import PromptPool, Segments
from promptdiffuser.learning.diffuser import Diffuser


@dataclass(frozen=True)
class AdaptationInputs:
    """All that a method may see of one target task: never its simulator, never its returns at test time."""

    task: int
    few_shot: PromptPool
    """Prompts and transitions of the target task's few-shot episodes."""
    training_pool: Callable[[], PromptPool]
    """Returns the same of all training tasks; read when it is asked for, as few methods need it."""
    diffuser: Diffuser | None
    """The method's diffuser after its few-shot stage on this task, for methods that have one."""
    num_prompts: int
    seed: int


@dataclass(frozen=True)
class Method:
    """A way of making prompts for the frozen backbone."""

    name: str
    make_prompts: Callable[[AdaptationInputs], Segments]
    """Inputs -> (num_prompts, K*) prompts; equal inputs give equal prompts."""
    trains_diffuser: bool = False
    """Whether a diffuser must be trained for it, multi-task and then on the few-shot episodes."""
    sees_task_context: bool = False
    """Whether its diffuser sees few-shot transitions besides y = (returns-to-go, timesteps)."""
