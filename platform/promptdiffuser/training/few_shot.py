"""Choosing the number of few-shot updates by the downstream loss on held-out few-shot episodes, never by returns.

How many updates the paper makes on a target task is not published. Few are too few and many over-fit a handful of
episodes; returns would choose best and must not, as a target task's simulator is not there to adapt to. So the last
episodes of the few-shot set are kept from the updates, and the snapshot whose prompts make the frozen backbone predict
their actions best becomes the model: early stopping.

Axes: W windows, K levels that generation visits, X features of a flattened prompt.
"""

from copy import copy, deepcopy
from pathlib import Path

import torch
from torch import Tensor

from promptdiffuser.data.plans import WindowPlan, held_out_plan
from promptdiffuser.data.windows import Segments
from promptdiffuser.training.backbone_objective import squared_action_errors
from promptdiffuser.training.diffuser_objective import DiffuserLearning
from promptdiffuser.training.engine import LearningTask
from promptdiffuser.training.snapshots import Criterion, read_scores, write_scores

DRAWS = 4
"""Prompts that every held-out window is scored with: one draw of noise says little about a diffuser."""
HELD_OUT_LOSS = Criterion("held_out_loss", "min")
"""How a few-shot training's snapshots are compared."""


@torch.no_grad()
def held_out_loss(learning: DiffuserLearning, weights: dict[str, Tensor]) -> float:
    """Return L_DT of weights on all windows of the episodes that the updates do not see, mean over steps and draws.

    Conditions and context come from the episodes that they do see. The noise is the same for all weights.
    """
    diffuser = copy(learning.diffuser)
    diffuser.denoiser = deepcopy(learning.model)
    diffuser.denoiser.load_state_dict(weights)
    pool = learning.pool
    plan = held_out_plan(learning.downstream_planner, pool.index, DRAWS)
    noise_KWX = diffuser.draw_batch_noise(len(plan.episodes), *learning.address, "held-out").to(learning.windows.device)
    prompts = diffuser.generate(
        pool.prompts_at(plan.prompt_episodes), pool.contexts_at(plan.context_episodes), noise_KWX
    )
    return loss_behind(learning, plan, prompts)


@torch.no_grad()
def loss_behind(learning: DiffuserLearning, plan: WindowPlan, prompts: Segments) -> float:
    """Return L_DT on the windows of a plan, each behind its prompt (W, K*)."""
    _, history = learning.windows.windows(0, plan)
    errors = squared_action_errors(learning.backbone, history.trimmed(), prompts)
    return float(errors.sum() / (plan.steps(learning.pool.index) * learning.windows.action_dim))


def score_snapshot(task: LearningTask, snapshot: Path, weights: dict[str, Tensor]) -> None:
    """Write a snapshot's held-out loss to `scores.json` beside it; a resumed training writes the same again."""
    assert isinstance(task, DiffuserLearning)
    record: dict[str, float | None] = {HELD_OUT_LOSS.score: held_out_loss(task, weights)}
    write_scores(snapshot.parent, read_scores(snapshot.parent) | {snapshot.name: record})
