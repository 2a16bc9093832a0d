"""What methods make of the frozen backbone, as a policy for batches of any mix of tasks and prompts.

Axes: B rows, N rows that start, S state, A action.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.windows import Segments
from promptdiffuser.models.backbone import Prompt, PromptDT
from promptdiffuser.models.decoding import Decoder, make_decoder
from promptdiffuser.rollout.protocol import EvaluationRequest
from promptdiffuser.rollout.stepping import Rows
from promptdiffuser.tasks.family import Floats, TaskFamily
from promptdiffuser.training.precision import Precision, number_format

SAME_DIGITS = 4
"""Decimals to which the numbers of two copies of a prompt agree; they are normalised, so of order 1."""


@dataclass(frozen=True)
class AdaptedPolicy:
    """What a method made of the frozen backbone for one task."""

    backbone: PromptDT
    """The frozen backbone itself, or a copy that the method has changed."""
    prompts: Prompt
    """Trajectory prompts (P, K*) or soft ones (P, tokens, D); episodes are run with each."""

    @cached_property
    def prompt_sources(self) -> NDArray[np.intp]:
        """Return for each prompt (P,) the first one that equals it: copies of a prompt are one draw, not several."""
        prompts = self.prompts
        parts = [prompts] if isinstance(prompts, Tensor) else [getattr(prompts, f.name) for f in fields(prompts)]
        flat_PX = np.concatenate([part.cpu().double().flatten(1).numpy() for part in parts], axis=1)
        # Copies that were computed side by side may differ in their last digits.
        _, first, inverse = np.unique(flat_PX.round(SAME_DIGITS), axis=0, return_index=True, return_inverse=True)
        return np.asarray(first[inverse], np.intp)


@dataclass(frozen=True)
class AdaptedPolicies:
    """The policies of every method and task; published once to all actors."""

    normaliser: Normaliser
    policies: dict[str, dict[int, AdaptedPolicy]]
    """Method -> task -> policy. Those that leave the backbone as it is share one object."""

    def of(self, request: EvaluationRequest) -> AdaptedPolicy:
        """Return the policy that plays an episode."""
        return self.policies[request.method][request.task]

    def prompts_of(self, requests: Sequence[EvaluationRequest]) -> Prompt:
        """Return the prompts (N, ...) of some episodes of one method."""
        trajectories: list[Segments] = []
        tokens: list[Tensor] = []
        for request in requests:
            prompts, row = self.of(request).prompts, slice(request.prompt, request.prompt + 1)
            if isinstance(prompts, Tensor):
                tokens.append(prompts[row])
            else:
                trajectories.append(prompts.select(row))
        return torch.cat(tokens) if tokens else Segments.concatenate(trajectories)


class PromptedPolicy:
    """Acts by one backbone; return-to-go starts at the episode's target and falls by every reward received.

    Each decision equals what training saw: with full attention the window of the last K steps, with banded attention
    the whole episode. Actions are deterministic.
    """

    def __init__(
        self,
        family: TaskFamily,
        policies: AdaptedPolicies,
        backbone: PromptDT,
        precision: Precision = "fp32",
        device: torch.device | None = None,
    ) -> None:
        """Take policies that share a backbone; it is moved to the device, which is the CPU if not given."""
        self.family, self.policies = family, policies
        self._device = device or torch.device("cpu")
        self._backbone = backbone.to(self._device)
        self._dtype = number_format(precision, self._device)
        self._decoder: Decoder
        self._returns_to_go_B = self._actions_BA = torch.empty(0)

    def begin(self, num_rows: int) -> None:
        """Allocate the decoder's memory."""
        self._decoder = make_decoder(self._backbone, num_rows, self._dtype)
        self._returns_to_go_B = torch.zeros(num_rows)
        self._actions_BA = torch.zeros(num_rows, self.family.action_dim)

    def start(self, rows: Rows, requests: Sequence[EvaluationRequest]) -> None:
        """Start episodes, each with its own prompt and target return."""
        rows_N = torch.from_numpy(rows)
        self._returns_to_go_B[rows_N] = torch.tensor([r.target_return for r in requests]) / self._return_scale
        self._decoder.start(rows_N.to(self._device), self.policies.prompts_of(requests))

    def act(self, observations_BS: Floats) -> Floats:
        """Return deterministic actions (B, A)."""
        states_BS = self.policies.normaliser.states(torch.from_numpy(observations_BS))
        inputs = (x.to(self._device) for x in (self._actions_BA, self._returns_to_go_B, states_BS))
        self._actions_BA = self._decoder.decide(*inputs).cpu()
        actions: Floats = self._actions_BA.numpy()
        return actions

    def observe(self, rewards_B: Floats) -> None:
        """Lower the returns-to-go by the rewards."""
        self._returns_to_go_B -= torch.from_numpy(rewards_B) / self._return_scale

    def keep(self, rows: Rows) -> None:
        """Drop all other rows."""
        rows_N = torch.from_numpy(rows)
        self._returns_to_go_B, self._actions_BA = self._returns_to_go_B[rows_N], self._actions_BA[rows_N]
        self._decoder.keep(rows_N.to(self._device))

    @property
    def _return_scale(self) -> Tensor:
        return self.policies.normaliser.return_scale
