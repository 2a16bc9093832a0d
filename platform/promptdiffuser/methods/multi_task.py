"""Baselines whose backbone sees less: MT-ORL no prompt, MT-BC neither prompt nor returns, Prompt-MT-BC no returns.

Nothing is fitted to the target task: without a prompt, the episode's own past alone can tell the backbone what it is.
The policies have the few-shot prompts all the same, so that they are evaluated like any other; MT-ORL and MT-BC do not
look at them.
"""

from promptdiffuser.methods import prompt_dt
from promptdiffuser.methods.adaptation import Method, register

register(Method("mt-orl", prompt_dt.adapt, "a backbone without prompt", label="MT-ORL", backbone="mt-orl"), place=70)
register(
    Method("mt-bc", prompt_dt.adapt, "a backbone without prompt and returns", label="MT-BC", backbone="mt-bc"), place=70
)
register(
    Method(
        "prompt-mt-bc",
        prompt_dt.adapt,
        "few-shot prompts, a backbone without returns",
        label="Prompt-MT-BC",
        backbone="prompt-mt-bc",
    ),
    place=70,
)
