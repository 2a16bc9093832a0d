"""The Prompt Diffuser: a denoiser with its diffusion process and prompt space.

Axes: B rows, X features of a flattened prompt, K levels that generation visits, M transitions of a context, F features
of a transition, U task ids, G numbers of a goal.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from promptdiffuser.data.windows import PromptPool, Segments
from promptdiffuser.diffusion.process import Diffusion, Steer
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.models.denoiser import Denoiser
from promptdiffuser.rng import normal_rows, torch_generator


class Diffuser:
    """A denoiser with its diffusion process and prompt space: everything that turns noise into prompts."""

    def __init__(
        self, denoiser: Denoiser, diffusion: Diffusion, space: PromptSpace, goals_UG: Tensor | None = None
    ) -> None:
        """Join the parts; `goals_UG` holds the goal of every task where the denoiser sees them."""
        self.denoiser, self.diffusion, self.space, self.goals_UG = denoiser, diffusion, space, goals_UG

    def seen(self, pool: PromptPool) -> PromptPool:
        """Return a pool whose contexts are what the denoiser sees of a task."""
        return pool if self.goals_UG is None else pool.with_goals(self.goals_UG)

    def draw_noise(self, num_prompts: int, *address: int | str) -> Tensor:
        """Return the noise (K, B, X) of reverse chains at an address; a prompt's does not depend on their number."""
        return normal_rows(num_prompts, (len(self.diffusion.steps), len(self.space.low)), *address).transpose(0, 1)

    def draw_batch_noise(self, batch_size: int, *address: int | str) -> Tensor:
        """Return the noise (K, B, X) of the reverse chains of one batch, drawn as a whole."""
        shape = (len(self.diffusion.steps), batch_size, len(self.space.low))
        return torch.randn(shape, generator=torch_generator(*address))

    def generate(
        self,
        conditions: Segments,
        transitions_BMF: Tensor,
        noise_KBX: Tensor,
        num_tracked: int = 0,
        steer: Steer | None = None,
    ) -> Segments:
        """Generate a prompt for each condition and task context by the full reverse chain.

        It is differentiable, through the predictions at its last `num_tracked` levels alone unless that is 0. What
        guides at sampling time moves the predicted x0 by `steer`.
        """
        condition_BC = self.denoiser.condition(self.space.condition(conditions), transitions_BMF)
        first_tracked = self.diffusion.steps[-num_tracked]

        def predict(x_BX: Tensor, step_B: Tensor) -> Tensor:
            # What is cut off is computed without a graph, so that it costs no memory.
            tracked = not num_tracked or int(step_B[0]) <= first_tracked
            with torch.set_grad_enabled(tracked and torch.is_grad_enabled()):
                return self.denoiser.guided(x_BX, step_B, condition_BC)

        return self.space.decode(self.diffusion.sample(predict, noise_KBX, steer), conditions)

    @torch.no_grad()
    def prompts_for(self, few_shot: PromptPool, num_prompts: int, *address: int | str) -> Segments:
        """Generate prompts of the task of a few-shot set, which is their context; y comes from its episodes in turn."""
        noise_KBX = self.draw_noise(num_prompts, *address).to(few_shot.transitions.device)
        return self.generate(*self.conditions_in_turn(few_shot, num_prompts), noise_KBX)

    def conditions_in_turn(self, few_shot: PromptPool, num_prompts: int) -> tuple[Segments, Tensor]:
        """Return y (B, K*) of the few-shot episodes in turn, and for each all of their transitions (B, M, F)."""
        seen = self.seen(few_shot)
        return seen.in_turn(num_prompts), seen.whole_context(num_prompts)

    def reconstruct(self, prompts: Segments, transitions_BMF: Tensor, step_B: Tensor, noise_BX: Tensor) -> Segments:
        """Return what a single prediction of x0 makes of noised prompts, at a noise level of each; differentiable."""
        condition_BC = self.denoiser.condition(self.space.condition(prompts), transitions_BMF)
        x_BX = self.diffusion.noised(self.space.encode(prompts), step_B, noise_BX)
        predicted_BX = self.denoiser.guided(x_BX, step_B, condition_BC)
        return self.space.decode(self.diffusion.predict_x0(x_BX, step_B[:, None], predicted_BX), prompts)

    def denoising_loss(
        self, prompts: Segments, transitions_BMF: Tensor, step_B: Tensor, noise_BX: Tensor, shown_B: Tensor
    ) -> Tensor:
        """Return L_DM of each row (B,): mean squared error of what is predicted, such as the noise, over features.

        Rows where `shown_B` is False are predicted without their condition.
        """
        condition_BC = self.denoiser.condition(self.space.condition(prompts), transitions_BMF)
        condition_BC = self.denoiser.hidden_but(shown_B, condition_BC)
        x0_BX = self.space.encode(prompts)
        predicted_BX = self.denoiser(self.diffusion.noised(x0_BX, step_B, noise_BX), step_B, condition_BC)
        predicted_BX = predicted_BX.to(x0_BX.dtype)
        target_BX = self.diffusion.target(x0_BX, step_B, noise_BX)
        return F.mse_loss(predicted_BX, target_BX, reduction="none").mean(dim=1)
