"""Methods that adapt the frozen backbone to a task: one file each and one line in `METHODS`."""

from promptdiffuser.errors import UserError
from promptdiffuser.methods import (
    adapters,
    best_of,
    fine_tuning,
    guided,
    lora,
    other_task_prompt,
    prompt_bandit,
    prompt_diffuser,
    prompt_dt,
    prompt_tensor_tuning,
    prompt_tuning_dt,
    soft_prompt,
    zero_shot,
)
from promptdiffuser.methods.adaptation import Method

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        prompt_dt.METHOD,
        other_task_prompt.METHOD,
        prompt_diffuser.PUBLISHED,
        prompt_diffuser.WITH_CONTEXT,
        prompt_diffuser.MULTI_TASK,
        *prompt_diffuser.ABLATIONS,
        *zero_shot.METHODS,
        *best_of.METHODS,
        guided.METHOD,
        prompt_tensor_tuning.METHOD,
        soft_prompt.METHOD,
        prompt_tuning_dt.OFFLINE,
        prompt_tuning_dt.ONLINE,
        *prompt_bandit.ALL,
        adapters.METHOD,
        lora.METHOD,
        fine_tuning.FEW_SHOT,
        fine_tuning.WHOLE_TASK,
    )
}


def get_method(name: str) -> Method:
    """Return a method by name, or raise a `UserError` that lists the known ones."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]
