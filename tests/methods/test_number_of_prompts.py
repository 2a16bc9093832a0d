"""A prompt does not depend on how many are asked for: the first of many are the few."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from promptdiffuser.methods import METHODS
from promptdiffuser.methods.adaptation import AdaptationInputs, Method
from promptdiffuser.methods.best_of import BestOfConfig, best_prompts, few_shot_losses
from promptdiffuser.methods.prompt_diffuser import trained_diffuser
from promptdiffuser.methods.soft_prompt import SoftPromptConfig
from promptdiffuser.models.backbone import Prompt
from tests.methods.test_adaptation_methods import tensors

MakeInputs = Callable[..., AdaptationInputs]
FEW, MANY = 7, 10


def assert_first_are(few: Prompt, many: Prompt) -> None:
    """Compare closely: a product of more rows may be summed in another order."""
    ours, others = tensors(few), tensors(many)
    assert ours.keys() == others.keys()
    for name, value in ours.items():
        torch.testing.assert_close(others[name][: len(value)], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: n + m)


def adapted(method: Method, inputs: AdaptationInputs) -> tuple[Prompt, dict[str, Tensor]]:
    """Adapt; tuned prompts are those after the last update, which have seen every draw."""
    if method.name in ("prompt-tensor-tuning", "soft-prompt"):
        inputs = replace(inputs, settings=replace(inputs.settings, held_out_episodes=0))
    policy = method.adapt(inputs).policy
    return policy.prompts, policy.backbone.state_dict()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_first_of_many_prompts_are_the_few(method: Method, make_inputs: MakeInputs) -> None:
    (few, weights), (many, same) = (adapted(method, make_inputs(method, num_prompts=n)) for n in (FEW, MANY))
    assert_first_are(few, many)
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_the_first_of_many_random_soft_prompts_are_the_few(make_inputs: MakeInputs) -> None:
    method, found = METHODS["soft-prompt"], []
    for num_prompts in (FEW, MANY):
        inputs = make_inputs(method, num_prompts=num_prompts)
        settings = SoftPromptConfig(steps=1, batch_steps=12, initial="normal")
        found.append(method.adapt(replace(inputs, settings=settings)).policy.prompts)
    assert_first_are(*found)


def test_a_candidate_does_not_depend_on_how_many_there_are(make_inputs: MakeInputs) -> None:
    """With more candidates a prompt stays as it was, or one of the new ones is better."""
    method, losses = METHODS["prompt-diffuser-best-of-multi-task"], []
    for candidates in (1, 2, 5):
        inputs = replace(make_inputs(method), settings=BestOfConfig(candidates=candidates, batch_steps=12))
        losses.append(few_shot_losses(best_prompts(trained_diffuser(inputs), inputs), inputs))
    one, two, five = losses
    assert (two <= one + 1e-6).all()
    assert (five <= two + 1e-6).all()
    assert (five < one).any()
