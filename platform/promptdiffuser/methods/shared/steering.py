"""Guidance at sampling time: the few-shot action loss moves what a trained diffuser is about to generate.

At every level that the chain visits, the predicted x0 goes a step against the gradient of the frozen backbone's action
loss behind it. The gradient goes through the backbone and not through the denoiser, as in MPGD (He et al. 2024,
algorithm 1; KellyYutongHe/mpgd_pytorch), which finds that it keeps what is generated near the data at a fraction of the
cost. Unlike there, the noise that the chain goes on with is what x and the moved x0 imply, as for a clipped x0.

Axes: B prompts, X features of a flattened prompt, W windows of all prompts, those of one together.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from promptdiffuser.data.plans import Address, EpisodeIndex
from promptdiffuser.data.windows import ResidentEpisodes, Segments
from promptdiffuser.diffusion.diffuser import Diffuser
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.training.guidance import ScheduledWeight
from promptdiffuser.training.tuning import action_losses, window_planner


@dataclass(frozen=True)
class SamplingGuidanceConfig(ScheduledWeight):
    """How the few-shot loss guides generation."""

    weight: float = 0.1
    """Weight of the step against the gradient at the last level; 0 is no guidance. Chosen on validation tasks, see
    docs/guidance.md."""
    weight_schedule: str = "constant"
    """constant, linear or cosine: how the weight goes from `initial_weight` to `weight` over the levels, from the
    noisiest."""
    match_norms: bool = True
    """Scale each prompt's gradient to the length of the noise that is left, sqrt(X) times the deviation of the level:
    for standardised data, what x0 is uncertain by. So long a step is DSG's (Yang et al. 2024), in x0 instead of x."""
    batch_steps: int = 200
    """Steps of history behind each prompt at each level, in windows of few-shot episodes; one window at least."""

    def __post_init__(self) -> None:
        """Refuse what cannot guide."""
        self.check_weight("adaptation.guided")
        if self.batch_steps < 1:
            raise ValueError(f"adaptation.guided.batch_steps must be at least 1, got {self.batch_steps}")


class FewShotSteering:
    """Moves the predicted x0 of a batch of prompts down the few-shot action loss; serves one run of the chain."""

    def __init__(
        self,
        diffuser: Diffuser,
        conditions: Segments,
        backbone: PromptDT,
        windows: ResidentEpisodes,
        index: EpisodeIndex,
        config: SamplingGuidanceConfig,
        address: Address,
    ) -> None:
        """Prepare the guidance of one prompt for each of the conditions (B, K*)."""
        self.diffuser, self.conditions, self.backbone, self.windows = diffuser, conditions, backbone, windows
        self.config = config
        self.planner = window_planner(backbone, index, config.batch_steps, len(conditions), address)
        self.gradient_steps = 0
        """Steps made so far."""

    def __call__(self, x0_BX: Tensor, level: int) -> Tensor:
        """Return x0 after a step at a level."""
        levels = self.diffuser.diffusion.levels
        weight = self.config.weight_at((level + 1) / len(levels))
        if not weight:
            return x0_BX
        gradient_BX = self.gradient(x0_BX, self.gradient_steps)
        self.gradient_steps += 1
        if self.config.match_norms:
            gradient_BX = F.normalize(gradient_BX, dim=1) * math.sqrt(x0_BX.shape[1]) * levels.deviation[level]
        return x0_BX - weight * gradient_BX

    def gradient(self, x0_BX: Tensor, step: int) -> Tensor:
        """Return the gradient (B, X) of each prompt's mean squared action error on the windows that a step draws."""
        _, history = self.windows.windows(step, plan := self.planner.at(step))
        rows_W = np.repeat(np.arange(len(x0_BX)), len(plan.episodes) // len(x0_BX))
        with torch.enable_grad():
            moved_BX = x0_BX.detach().requires_grad_()
            prompts = self.diffuser.space.decode(moved_BX, self.conditions)
            prompts_W = prompts.select(torch.from_numpy(rows_W).to(x0_BX.device))
            loss = action_losses(self.backbone, history, prompts_W, len(x0_BX)).sum()
            (gradient_BX,) = torch.autograd.grad(loss, moved_BX)
        return gradient_BX
