"""The ablation arms follow the losses they are named after, whatever the experiment's own guidance is.

Axes: P parameters.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from promptdiffuser.methods import METHODS
from promptdiffuser.methods.adaptation import AdaptationInputs
from promptdiffuser.methods.diffusers import DIFFUSERS
from promptdiffuser.training.diffuser_objective import DiffuserLearning
from promptdiffuser.training.engine import FlatParameters
from promptdiffuser.training.guidance import GuidanceConfig

BASES = {
    "default": GuidanceConfig(batch_size=4),
    "alternating": GuidanceConfig(batch_size=4, losses="alternating", projection="sum"),
    "downstream": GuidanceConfig(batch_size=4, losses="downstream", projection="sum", match_norms=False),
    "fading": GuidanceConfig(0.0, "cosine", 5.0, batch_size=4),
    "update": GuidanceConfig(batch_size=4, project="update"),
}


def learning(name: str, base: GuidanceConfig, make_inputs: Callable[..., AdaptationInputs]) -> DiffuserLearning:
    method = METHODS[name]
    assert method.diffuser is not None
    inputs = make_inputs(method)
    assert inputs.few_shot_training is not None
    guidance = replace(base, **DIFFUSERS[method.diffuser].guidance)
    training = replace(inputs.few_shot_training, guidance=guidance)
    return training.learning_task(inputs.few_shot.windows, inputs.few_shot.pool, inputs.device)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_arms_follow_their_losses(base: GuidanceConfig, make_inputs: Callable[..., AdaptationInputs]) -> None:
    dm_only = learning("prompt-diffuser-dm", base, make_inputs)
    share = dm_only.local_gradients(FlatParameters(dm_only.model), 0)
    assert list(share.scalars) == ["loss_dm"]
    assert torch.equal(dm_only.combine(share.gradients_GP, 0).gradient, share.gradients_GP[0])

    dt_only, plain_sum = (learning(f"prompt-diffuser-{arm}", base, make_inputs) for arm in ("dt", "sum"))
    gradient_dm_P, gradient_dt_P = dt_only.local_gradients(FlatParameters(dt_only.model), 0).gradients_GP
    assert gradient_dm_P @ gradient_dt_P != 0
    gradients_GP = torch.stack([gradient_dm_P, gradient_dt_P])
    weight = base.weight_at(1 / dt_only.num_updates)
    torch.testing.assert_close(dt_only.combine(gradients_GP, 0).gradient, weight * gradient_dt_P)

    scale = gradient_dm_P.norm() / gradient_dt_P.norm() if base.match_norms else 1.0
    joined = plain_sum.combine(gradients_GP, 0)
    torch.testing.assert_close(joined.gradient, gradient_dm_P + weight * scale * gradient_dt_P)
    assert joined.project is None
