"""Playing episodes of the target task while adapting to it, for methods that say so in `Method.uses_simulator`.

Axes: N episodes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from promptdiffuser.methods.adaptation import AdaptationInputs
from promptdiffuser.models.backbone import Prompt
from promptdiffuser.rng import SIMULATOR_SEEDS, seed_at
from promptdiffuser.rollout.policies import AdaptedPolicies, AdaptedPolicy, PromptedPolicy
from promptdiffuser.rollout.protocol import EvaluationRequest
from promptdiffuser.rollout.stepping import EpisodeStepper


class TargetSimulator:
    """The simulator of one target task, for prompts in front of the frozen backbone; it counts what is played."""

    def __init__(self, inputs: AdaptationInputs, method: str) -> None:
        """Make no simulators yet; start states are addressed below seed, method and task, apart from evaluations'."""
        self.episodes_played = 0
        self._inputs, self._method = inputs, method
        self._stepper = EpisodeStepper(inputs.family, inputs.device)

    def play(self, prompts: Prompt, starts: Sequence[int]) -> NDArray[np.float64]:
        """Play one episode with each prompt and return the returns (N,), NaN where the simulator lost the state.

        Args:
            prompts: The prompts (N, ...).
            starts: Number of each episode's start state; equal numbers begin alike.
        """
        inputs, family = self._inputs, self._inputs.family
        policies = AdaptedPolicies(
            inputs.normaliser, {self._method: {inputs.task: AdaptedPolicy(inputs.backbone, prompts)}}
        )
        requests = [
            EvaluationRequest(
                task=inputs.task,
                seed=seed_at(inputs.seed, self._method, inputs.task, "play", start) % SIMULATOR_SEEDS,
                method=self._method,
                prompt=number,
                episode=0,
                target_return=inputs.target_return,
            )
            for number, start in enumerate(starts)
        ]
        # Rounding moves actions by 0.4 % at most, and episodes are what such a method takes long for.
        policy = PromptedPolicy(family, policies, inputs.backbone, "auto", inputs.device)
        rollouts = self._stepper.roll_out(requests, policy, lockstep=family.max_simulators)
        self.episodes_played += len(requests)
        return np.where(rollouts.diverged_N, np.nan, rollouts.episodes.returns.astype(np.float64))
