"""Guidance at sampling time as a method: what it starts from and what it says it costs."""

from collections.abc import Callable
from dataclasses import replace

import torch

from promptdiffuser.data.windows import Segments
from promptdiffuser.methods import METHODS
from promptdiffuser.methods.adaptation import AdaptationInputs
from tests.methods.conftest import FAMILY
from tests.rollout.synthetic_policies import TINY

METHOD, PLAIN = METHODS["prompt-diffuser-guided"], METHODS["prompt-diffuser-multi-task"]


def test_it_moves_what_the_diffuser_generates_without_guidance(make_inputs: Callable[..., AdaptationInputs]) -> None:
    plain = PLAIN.adapt(make_inputs(PLAIN)).policy.prompts
    guided = METHOD.adapt(make_inputs(METHOD))
    inputs = make_inputs(METHOD)
    off = METHOD.adapt(replace(inputs, settings=replace(inputs.settings, weight=0.0)))
    assert isinstance(plain, Segments)
    assert isinstance(guided.policy.prompts, Segments)
    assert isinstance(off.policy.prompts, Segments)
    assert torch.equal(off.policy.prompts.states, plain.states)
    assert not torch.equal(guided.policy.prompts.states, plain.states)
    assert torch.equal(guided.policy.prompts.returns_to_go, plain.returns_to_go)
    # Five levels, and the states and actions of a prompt.
    assert guided.cost.gradient_steps == 5
    assert guided.cost.tunable_parameters == TINY.prompt_length * (FAMILY.observation_dim + FAMILY.action_dim)
    assert off.cost.gradient_steps == 0
