"""Training of the Prompt Diffuser: denoising loss, downstream loss through the frozen backbone, gradient projection.

Two stages share this learning task and differ only in the data they are given: multi-task training on the training
tasks, then a few updates on the few-shot episodes of one target task (paper, Algorithm 1).

Axes: B rows, X features of a flattened prompt, K levels that generation visits, G gradients, P parameters.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from promptdiffuser.data.plans import Address, Planner
from promptdiffuser.data.windows import PromptPool, WindowSource
from promptdiffuser.diffusion.diffuser import Diffuser
from promptdiffuser.models.backbone import PromptDT
from promptdiffuser.rng import torch_generator
from promptdiffuser.training.backbone_objective import squared_action_errors
from promptdiffuser.training.engine import CombinedGradient, FlatParameters, LocalGradients
from promptdiffuser.training.gradients import accumulate
from promptdiffuser.training.guidance import GuidanceConfig
from promptdiffuser.training.projection import build_projection, weigh


class DiffuserLearning:
    """The engine's learning task for a Prompt Diffuser."""

    def __init__(
        self,
        diffuser: Diffuser,
        backbone: PromptDT,
        windows: WindowSource,
        pool: PromptPool,
        guidance: GuidanceConfig,
        planner: Planner,
        batch_size: int,
        guidance_start: int,
        num_updates: int,
        address: Address,
    ) -> None:
        """Train the denoiser; `backbone` is frozen, guidance acts from update `guidance_start` of `num_updates` on.

        `planner` draws what the downstream loss sees, `batch_size` is the number of prompts in the denoising loss.
        """
        self.model = diffuser.denoiser
        self.diffuser, self.backbone, self.windows, self.pool = diffuser, backbone, windows, diffuser.seen(pool)
        self.guidance, self.guidance_start, self.num_updates = guidance, guidance_start, num_updates
        self.address = address
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.projection = build_projection(guidance.projection, parameters, guidance.energy, guidance.memory_decay)
        self.memory = self.projection.memory
        self.downstream_planner = planner
        # The denoising loss sees prompts alone, of which every worker has all.
        self.denoising_planner = Planner(planner.index, batch_size, 1, (*address, "dm"), planner.num_context)

    def local_gradients(self, parameters: FlatParameters, step: int) -> LocalGradients:
        """Return this worker's share of L_DM and, where guidance acts, of L_DT, with a gradient each."""
        loss_dm, gradient_dm = self._denoising_share(parameters, step)
        if not self.guidance.acts or step < self.guidance_start:
            return LocalGradients(gradient_dm[None], {"loss_dm": loss_dm})
        loss_dt, gradient_dt = self._downstream_share(parameters, step)
        return LocalGradients(torch.stack([gradient_dm, gradient_dt]), {"loss_dm": loss_dm, "loss_dt": loss_dt})

    def combine(self, gradients_GP: Tensor, step: int) -> CombinedGradient:
        """Join the two gradients as configured; before guidance acts there is but one."""
        if len(gradients_GP) == 1:
            return CombinedGradient(gradients_GP[0])
        gradient_dm, gradient_dt = gradients_GP
        config, num_guided = self.guidance, step - self.guidance_start + 1
        weight = config.weight_at(num_guided / (self.num_updates - self.guidance_start))
        projects_update = config.project == "update"
        kept = gradient_dt if projects_update else self.projection(gradient_dm, gradient_dt)
        guidance, metrics = weigh(gradient_dm, gradient_dt, kept, weight, config.match_norms)
        metrics["guidance_weight"] = weight
        if config.losses == "alternating" and num_guided % 2:
            return CombinedGradient(gradient_dm, metrics)
        unguided = gradient_dm if config.losses == "joint" else torch.zeros_like(gradient_dm)
        project = partial(self._project_update, gradient_dm) if projects_update else None
        return CombinedGradient(unguided + guidance, metrics, unguided, project)

    def _project_update(self, gradient_dm: Tensor, share_P: Tensor) -> Tensor:
        # An update descends, so it has the sign of a gradient turned round; a rule that asks for conflict cares.
        return -self.projection(gradient_dm, -share_P)

    def _denoising_share(self, parameters: FlatParameters, step: int) -> tuple[Tensor, Tensor]:
        plan, size = self.denoising_planner.at(step), self.denoising_planner.batch_size
        generator = torch_generator(*self.address, "dm-noise", step)
        # Drawn for the global batch, so that a row's noise does not depend on which worker holds it.
        step_B = torch.randint(self.diffuser.diffusion.num_steps, (size,), generator=generator)
        noise_BX = torch.randn(size, len(self.diffuser.space.low), generator=generator)
        uniform_B = torch.rand(size, generator=torch_generator(*self.address, "dm-dropout", step))
        shown_B = uniform_B >= self.diffuser.denoiser.config.condition_dropout
        rows, device = self.windows.held(plan), self.windows.device

        def loss_of(part: slice) -> Tensor:
            held = plan.select(rows[part])
            losses_B = self.diffuser.denoising_loss(
                self.pool.prompts_at(held.prompt_episodes),
                self.pool.contexts_at(held.context_episodes),
                step_B[rows[part]].to(device),
                noise_BX[rows[part]].to(device),
                shown_B[rows[part]].to(device),
            )
            return losses_B.sum() / size

        return self._accumulated(parameters, loss_of, len(rows))

    def _downstream_share(self, parameters: FlatParameters, step: int) -> tuple[Tensor, Tensor]:
        plan = self.downstream_planner.at(step)
        count = plan.steps(self.pool.index) * self.windows.action_dim
        rows, history = self.windows.windows(step, plan)
        config, device = self.guidance, self.windows.device
        noise_KBX = self.diffuser.draw_batch_noise(config.batch_size, *self.address, "dt-noise", step)
        generator = torch_generator(*self.address, "dt-level", step)
        step_B = torch.randint(self.diffuser.diffusion.num_steps, (config.batch_size,), generator=generator)

        def loss_of(part: slice) -> Tensor:
            held, noise = plan.select(rows[part]), noise_KBX[:, rows[part]].to(device)
            real, contexts = self.pool.prompts_at(held.prompt_episodes), self.pool.contexts_at(held.context_episodes)
            if config.path == "one-step":
                prompts = self.diffuser.reconstruct(real, contexts, step_B[rows[part]].to(device), noise[-1])
            else:
                prompts = self.diffuser.generate(real, contexts, noise, config.path_steps)
            errors = squared_action_errors(self.backbone, history.select(part).trimmed(), prompts)
            return errors.sum() / count

        return self._accumulated(parameters, loss_of, len(rows))

    def _accumulated(
        self, parameters: FlatParameters, loss_of: Callable[[slice], Tensor], num_rows: int
    ) -> tuple[Tensor, Tensor]:
        return accumulate(
            parameters, loss_of, num_rows, self.guidance.accumulation, self.guidance.precision, self.windows.device
        )
