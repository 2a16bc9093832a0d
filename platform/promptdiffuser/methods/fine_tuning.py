"""Fine-tuning of all weights of the backbone, on the few-shot episodes or on all episodes of the target task.

`fine-tuning` is Prompt-DT-FT. The public code makes 10 updates of AdamW at 1e-4 with weight decay 1e-4 on 256 windows
(mxu34/prompt-dt at 5f665e5, pdt_main.py); how many the papers make is not known, so here the number is chosen by early
stopping. `fine-tuning-whole-task` is the papers' "full data": an upper bound, no few-shot method.
"""

from dataclasses import dataclass

from promptdiffuser.methods.adaptation import Adaptation, AdaptationInputs, Method, register
from promptdiffuser.methods.tuned_weights import WeightTuningConfig, tune_weights
from promptdiffuser.models.backbone import PromptDT


@dataclass(frozen=True)
class FineTuningConfig(WeightTuningConfig):
    """Settings of fine-tuning and fine-tuning-whole-task."""

    learning_rate: float = 1e-4
    """Step size of AdamW, constant."""
    weight_decay: float = 1e-4
    """AdamW's decoupled weight decay, as in the public code."""


def adapt(inputs: AdaptationInputs) -> Adaptation:
    """Tune a copy of the backbone on the few-shot episodes."""
    return tune_weights(inputs, inputs.settings, inputs.few_shot, FEW_SHOT.name, _all_trainable)


def adapt_to_whole_task(inputs: AdaptationInputs) -> Adaptation:
    """Tune a copy of the backbone on all episodes of the target task."""
    return tune_weights(inputs, inputs.settings, inputs.whole_task(), WHOLE_TASK.name, _all_trainable)


def _all_trainable(backbone: PromptDT) -> PromptDT:
    return backbone.requires_grad_()


FEW_SHOT = register(
    Method(
        "fine-tuning",
        adapt,
        "all weights tuned on the few-shot episodes",
        label="Fine-tuning",
        settings=FineTuningConfig,
        changes_weights=True,
    ),
    place=180,
)
WHOLE_TASK = register(
    Method(
        "fine-tuning-whole-task",
        adapt_to_whole_task,
        "all weights tuned on all data of the task: an upper bound",
        label="Fine-tuning on the whole task",
        settings=FineTuningConfig,
        section="fine_tuning",
        changes_weights=True,
        reads_whole_task=True,
    ),
    place=180,
)
