"""Methods that adapt the frozen backbone to a task: one file each and one line in `METHODS`."""

from promptdiffuser.errors import UserError
from promptdiffuser.methods import (
    adapters,
    best_of,
    fine_tuning,
    gaussian_prompt,
    guided,
    lora,
    mean_prompt,
    multi_task,
    nearest_prompt,
    other_task_prompt,
    prompt_bandit,
    prompt_diffuser,
    prompt_dt,
    prompt_tensor_tuning,
    prompt_tuning_dt,
    soft_prompt,
    vae_prompt,
    zero_shot,
)
from promptdiffuser.methods.adaptation import Method
from promptdiffuser.methods.config import AdaptationConfig

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        prompt_dt.METHOD,
        prompt_dt.MEDIUM,
        prompt_dt.RANDOM,
        other_task_prompt.METHOD,
        nearest_prompt.METHOD,
        mean_prompt.METHOD,
        gaussian_prompt.METHOD,
        vae_prompt.METHOD,
        multi_task.MT_ORL,
        multi_task.MT_BC,
        multi_task.PROMPT_MT_BC,
        prompt_diffuser.PUBLISHED,
        prompt_diffuser.WITH_CONTEXT,
        prompt_diffuser.MULTI_TASK,
        *prompt_diffuser.ABLATIONS,
        prompt_diffuser.OPTIMISED,
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


def settings_of(adaptation: AdaptationConfig, method: Method) -> object:
    """Return a method's own settings; None if it has none."""
    return None if method.settings is None else getattr(adaptation, method.settings)
