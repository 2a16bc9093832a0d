"""Control: prompts from a conditional VAE instead of a diffuser, with the condition of `prompt-diffuser-context`.

A conditional VAE (Kingma & Welling 2014; Sohn, Lee, Yan 2015) of the flattened (state, action, reward) of a prompt,
given y = (returns-to-go, timesteps) and the transitions of few-shot episodes. It learns only from training tasks other
than the target task, anew for every target task, as that takes seconds; nothing is fitted to the target task. On
families with disjoint splits it is the same for every target task.

Axes: B rows, X features of a flattened prompt, M context transitions, F their features, C features of the condition,
L latent features.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptdiffuser.data.plans import Address, Planner
from promptdiffuser.data.windows import PromptPool, Segments
from promptdiffuser.diffusion.prompt_space import PromptSpace
from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Method, register
from promptdiffuser.models.denoiser import ContextEncoder
from promptdiffuser.rng import normal_rows, torch_generator
from promptdiffuser.rollout.policies import AdaptedPolicy
from promptdiffuser.training.engine import (
    CombinedGradient,
    Engine,
    FlatParameters,
    LocalGradients,
    OptimisationConfig,
    identity_reduce,
)
from promptdiffuser.training.model_folders import addressed_initialisation
from promptdiffuser.training.trainings import History

LOG_EVERY = 100
CLIP_NORM = 100.0
"""Of the gradient; the loss is a sum over features, so it is large at first."""
DEVIATION_FLOOR = 0.01
"""Keeps the likelihood finite where a feature is the same in all prompts, such as an action at its bound."""


@dataclass(frozen=True)
class VaePromptConfig:
    """Network and training of the VAE."""

    updates: int = 1_000
    """Updates on the training tasks' prompts."""
    batch_size: int = 64
    """Prompts of one update."""
    learning_rate: float = 3e-3
    """Peak step size of Adam; it rises over 10 % of the updates and then falls to 0."""
    latent: int = 16
    """Latent features."""
    hidden: int = 256
    """Width of the two hidden layers of encoder and decoder."""
    context_features: int = 32
    """Features of the task context."""
    context_hidden: int = 64
    """Width of the task context's encoder."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        for name in ("updates", "batch_size", "latent", "hidden", "context_features", "context_hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"adaptation.vae_prompt.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"adaptation.vae_prompt.learning_rate must be above 0 and finite, got {self.learning_rate}"
            )

    @property
    def optimisation(self) -> OptimisationConfig:
        """What the engine is told."""
        return OptimisationConfig(
            steps=self.updates,
            learning_rate=self.learning_rate,
            schedule="one-cycle",
            weight_decay=0.0,
            clip_norm=CLIP_NORM,
        )


def adapt(inputs: AdaptationInputs) -> Adaptation:
    """Train on the training tasks, then generate for the target task, clipped to the data's bounds."""
    config: VaePromptConfig = inputs.settings
    few_shot = inputs.few_shot.pool
    vae = trained_vae(inputs, inputs.training().pool, num_context=len(few_shot.prompts))
    conditions, transitions_BMF = inputs.few_shot_prompts(), few_shot.whole_context(inputs.num_prompts)
    address = (inputs.seed, "vae-prompt", "generate", inputs.task)
    latent_BL = normal_rows(inputs.num_prompts, (config.latent,), *address)
    return Adaptation(
        AdaptedPolicy(inputs.backbone, vae.generate(conditions, transitions_BMF, latent_BL.to(inputs.device)))
    )


class PromptVAE(nn.Module):
    """Encoder and decoder; the decoder is a Gaussian with a learned deviation of each feature."""

    def __init__(self, config: VaePromptConfig, space: PromptSpace, transition_features: int) -> None:
        super().__init__()
        self.space = space
        self.encode_context = ContextEncoder(transition_features, config.context_hidden, config.context_features)
        num_features, condition = len(space.low), space.condition_features + config.context_features
        self.encoder = _mlp(num_features + condition, config.hidden, 2 * config.latent)
        self.decoder = _mlp(config.latent + condition, config.hidden, num_features)
        self.log_deviation_X = nn.Parameter(torch.zeros(num_features))

    def negative_elbo(self, prompts: Segments, transitions_BMF: Tensor, noise_BL: Tensor) -> Tensor:
        """Return - log p(x | z, c) + KL(q(z | x, c) || N(0, I)) of each prompt (B,), in nats, for one z of each."""
        x_BX, condition_BC = self.space.encode(prompts), self._condition(prompts, transitions_BMF)
        mean_BL, spread_BL = self.encoder(torch.cat([x_BX, condition_BC], dim=-1)).chunk(2, dim=-1)
        # Linear where it is large: an exponential makes one outlier's loss, and its gradient, infinite.
        deviation_BL = F.softplus(spread_BL) + DEVIATION_FLOOR
        latent_BL = mean_BL + deviation_BL * noise_BL
        deviation_X = DEVIATION_FLOOR + self.log_deviation_X.exp()
        decoded_BX = self.decoder(torch.cat([latent_BL, condition_BC], dim=-1))
        log_likelihood_B: Tensor = torch.distributions.Normal(decoded_BX, deviation_X).log_prob(x_BX).sum(1)
        # Kingma & Welling 2014, appendix B.
        kl_B = (0.5 * (mean_BL.square() + deviation_BL.square() - 1) - deviation_BL.log()).sum(1)
        negative_elbo_B: Tensor = kl_B - log_likelihood_B
        return negative_elbo_B

    @torch.no_grad()
    def generate(self, conditions: Segments, transitions_BMF: Tensor, latent_BL: Tensor) -> Segments:
        """Return the decoder's mean for each latent (B, L), without its noise, as is usual, clipped to the bounds."""
        condition_BC = self._condition(conditions, transitions_BMF)
        x_BX = self.decoder(torch.cat([latent_BL, condition_BC], dim=-1))
        return self.space.decode(x_BX.clamp(self.space.low, self.space.high), conditions)

    def _condition(self, prompts: Segments, transitions_BMF: Tensor) -> Tensor:
        return torch.cat([self.space.condition(prompts), self.encode_context(transitions_BMF)], dim=-1)


class VaeLearning:
    """The engine's learning task for the VAE."""

    def __init__(
        self, vae: PromptVAE, pool: PromptPool, config: VaePromptConfig, num_context: int, address: Address
    ) -> None:
        """Train on the prompts of a pool, each with the transitions of `num_context` episodes of its task."""
        self.model, self.pool, self.config, self.address = vae, pool, config, address
        self.memory: dict[str, Tensor] = {}
        self.planner = Planner(pool.index, config.batch_size, 1, address, num_context)

    def local_gradients(self, parameters: FlatParameters, step: int) -> LocalGradients:
        """Return the mean negative ELBO of a batch and its gradient."""
        plan, size = self.planner.at(step), (self.config.batch_size, self.config.latent)
        noise_BL = torch.randn(size, generator=torch_generator(*self.address, "noise", step))
        prompts = self.pool.prompts_at(plan.prompt_episodes)
        transitions_BMF = self.pool.contexts_at(plan.context_episodes)
        loss = self.model.negative_elbo(prompts, transitions_BMF, noise_BL.to(transitions_BMF.device)).mean()
        return LocalGradients(parameters.gradient(loss)[None], {"negative_elbo": loss})

    def combine(self, gradients_GP: Tensor, step: int) -> CombinedGradient:
        """Follow the only gradient."""
        return CombinedGradient(gradients_GP[0])


def trained_vae(inputs: AdaptationInputs, pool: PromptPool, num_context: int) -> PromptVAE:
    """Return a VAE trained on the prompts of a pool."""
    config: VaePromptConfig = inputs.settings
    address = (inputs.seed, "vae-prompt")
    space = PromptSpace.fit(inputs.normaliser, pool.prompts, inputs.family.horizon)
    with addressed_initialisation(*address):
        vae = PromptVAE(config, space, pool.transitions.shape[-1]).to(inputs.device)
    engine, history = (
        Engine(VaeLearning(vae, pool, config, num_context, address), config.optimisation, identity_reduce),
        History(),
    )
    for step in range(1, config.updates + 1):
        metrics = engine.advance()
        if step % LOG_EVERY == 0 or step == config.updates:
            history.append({"step": step} | {f"train/{name}": value for name, value in metrics.items()})
    inputs.on_history(history)
    return vae


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.Mish(), nn.Linear(hidden, hidden), nn.Mish(), nn.Linear(hidden, outputs)
    )


register(
    Method(
        "vae-prompt",
        adapt,
        "generated by a conditional VAE instead of a diffuser",
        label="VAE prompts",
        settings=VaePromptConfig,
    ),
    place=60,
)
