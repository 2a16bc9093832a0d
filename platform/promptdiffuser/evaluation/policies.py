"""The frozen backbone as a batch policy: every episode has a prompt before its own last K steps.

Axes: B episodes in lockstep, T steps, S state, A action.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from promptdiffuser.data.normaliser import Normaliser
from promptdiffuser.data.windows import Segments
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.models.decoding import StepDecoder
from promptdiffuser.tasks.family import Floats, TaskFamily


class PromptedPolicy:
    """Acts by the backbone; return-to-go starts at the family's target and falls by every reward received.

    Each decision equals what training saw: with full attention the window of the last K steps is computed anew, with
    banded attention a cache holds what earlier steps left. Actions are deterministic.
    """

    def __init__(self, family: TaskFamily, backbone: PromptDT, normaliser: Normaliser, prompts: Segments) -> None:
        """Take one prompt an episode, in the order of the episodes."""
        self.family, self.backbone, self.normaliser, self.prompts = family, backbone, normaliser, prompts
        self._device = normaliser.state_mean.device
        self._step = 0
        self._decoder: StepDecoder | None = None
        self._returns_to_go_BT = self._states_BTS = self._actions_BTA = torch.empty(0)

    def begin(self, tasks: Sequence[int]) -> None:
        """Preallocate the episodes' memory; a padded step at the end makes room for the step being decided."""
        num, horizon = len(tasks), self.family.horizon
        self._step = 0
        self._returns_to_go_BT = torch.zeros(num, horizon + 1, device=self._device)
        self._returns_to_go_BT[:, 0] = self.family.target_return / float(self.normaliser.return_scale)
        self._states_BTS = torch.zeros(num, horizon, self.family.observation_dim, device=self._device)
        self._actions_BTA = torch.zeros(num, horizon, self.family.action_dim, device=self._device)
        if self.backbone.config.attention == "banded":
            with torch.inference_mode():
                self._decoder = StepDecoder(self.backbone, self.prompts)

    @torch.inference_mode()
    def act(self, observations_BS: Floats) -> Floats:
        """Return deterministic actions (B, A)."""
        t = self._step
        self._states_BTS[:, t] = self.normaliser.states(torch.from_numpy(observations_BS).to(self._device))
        if self._decoder is not None:
            action_BA = self._decoder.action(self._history(slice(max(0, t - 1), t + 1)))
        else:
            window = slice(max(0, t + 1 - self.backbone.config.history), t + 1)
            action_BA = self.backbone.last_action(self._history(window), self.prompts)
        self._actions_BTA[:, t] = action_BA
        actions: Floats = action_BA.float().cpu().numpy()
        return actions

    def observe(self, rewards_B: Floats) -> None:
        """Lower the return-to-go by the rewards and move on."""
        rewards = torch.from_numpy(rewards_B).to(self._device) / self.normaliser.return_scale
        self._returns_to_go_BT[:, self._step + 1] = self._returns_to_go_BT[:, self._step] - rewards
        self._step += 1

    def _history(self, window: slice) -> Segments:
        # The action token of the step being decided is still zero; it stands after the state token that decides.
        num, steps = len(self._states_BTS), window.stop - window.start
        timesteps: Tensor = torch.arange(window.start, window.stop, device=self._device).expand(num, steps)
        return Segments(
            returns_to_go=self._returns_to_go_BT[:, window],
            states=self._states_BTS[:, window],
            actions=self._actions_BTA[:, window],
            rewards=torch.zeros(num, steps, device=self._device),
            timesteps=timesteps,
            valid=torch.ones(num, steps, dtype=torch.bool, device=self._device),
        )
