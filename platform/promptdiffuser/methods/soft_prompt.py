"""Soft prompts: free embedding vectors in the place of the prompt's tokens (Lester et al. 2021), tuned by Adam.

The papers that compare with them give no detail; here there are as many as a trajectory prompt has tokens, 3 K*.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Cost, Method, register
from promptdiffuser.rng import normal_rows
from promptdiffuser.rollout.policies import AdaptedPolicy
from promptdiffuser.training.tuning import FewShotTuning, TuningConfig, tune

DEVIATION = 0.02
"""Of vectors that begin random, as GPT-2's embeddings do."""


@dataclass(frozen=True)
class SoftPromptConfig(TuningConfig):
    """Settings of soft-prompt."""

    learning_rate: float = 0.03
    """Step size of AdamW, constant."""
    initial: Literal["few-shot", "normal"] = "few-shot"
    """few-shot: each begins as an embedded few-shot prompt. normal: random, with deviation 0.02."""

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        super().__post_init__()
        if self.initial not in ("few-shot", "normal"):
            raise ValueError(f"initial must be few-shot or normal, got {self.initial!r}")


def adapt(inputs: AdaptationInputs) -> Adaptation:
    """Tune the tokens of every prompt."""
    config: SoftPromptConfig = inputs.settings
    address = (inputs.seed, "soft-prompt", inputs.task)
    tokens = nn.Parameter(_initial_tokens(inputs, config, address))
    task = FewShotTuning(
        nn.ParameterList([tokens]),
        inputs.backbone,
        lambda rows_B: tokens[rows_B],
        inputs.few_shot.windows,
        inputs.few_shot.pool.index,
        config,
        address,
        num_prompts=inputs.num_prompts,
    )
    tune(task)
    return Adaptation(AdaptedPolicy(inputs.backbone, tokens.detach()), Cost(tokens[0].numel(), config.steps))


@torch.no_grad()
def _initial_tokens(inputs: AdaptationInputs, config: SoftPromptConfig, address: tuple[int | str, ...]) -> Tensor:
    start = inputs.few_shot_prompts(config.num_seen(len(inputs.few_shot.pool.prompts)))
    tokens = inputs.backbone.prompt_tokens(start)
    if config.initial == "few-shot":
        return tokens
    return DEVIATION * normal_rows(len(tokens), tokens.shape[1:], *address, "initial").to(tokens.device)


register(
    Method(
        "soft-prompt",
        adapt,
        "free embedding vectors in place of the prompt, tuned",
        label="Soft prompt",
        settings=SoftPromptConfig,
    ),
    place=130,
)
