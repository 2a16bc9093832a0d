"""The numbers of a trajectory prompt that tuning may change: returns-to-go, states and actions.

Timesteps stay as they are, and rewards are not seen by the backbone. On the dimensions of Meta-World (39 + 4) and with
K* = 5 these are 5 (1 + 39 + 4) = 220 numbers. The published count of Prompt-Tuning DT, 0.24 thousand, is 240: the
author's code perturbs rewards, timesteps, mask and a done flag too (knight-fzq/mtdt at 595ccd5,
prompt_dt/taming_trainer.py), 5 (39 + 4 + 5); rewards and done flags do nothing there, timesteps are rounded back, and
a perturbed mask is an attention bias of thousands.

Axes: P prompts, K steps, X numbers of a prompt.
"""

from dataclasses import replace

import torch
from torch import Tensor

from promptdiffuser.data.windows import Segments


def numbers_of(prompts: Segments) -> Tensor:
    """Return the numbers (P, X) of prompts: those of each step together, in the order return-to-go, state, action."""
    return torch.cat([prompts.returns_to_go[..., None], prompts.states, prompts.actions], dim=-1).flatten(1)


def with_numbers(prompts: Segments, numbers_PX: Tensor) -> Segments:
    """Return the prompts with other numbers."""
    sizes = [1, prompts.states.shape[-1], prompts.actions.shape[-1]]
    returns_PK1, states, actions = numbers_PX.unflatten(1, (-1, sum(sizes))).split(sizes, dim=-1)
    return replace(prompts, returns_to_go=returns_PK1[..., 0], states=states, actions=actions)
