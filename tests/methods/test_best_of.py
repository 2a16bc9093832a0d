"""Best of several generated prompts: scored as the definition says, chosen among each prompt's own candidates."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from promptdiffuser.data.windows import Segments
from promptdiffuser.methods import METHODS, best_of
from promptdiffuser.methods.adaptation import AdaptationInputs
from promptdiffuser.methods.best_of import BestOfConfig, few_shot_losses
from promptdiffuser.methods.prompt_diffuser import noise_of, trained_diffuser
from promptdiffuser.training.backbone_objective import squared_action_errors
from tests.methods.conftest import NUM_PROMPTS
from tests.rollout.synthetic_policies import TINY

MakeInputs = Callable[..., AdaptationInputs]
METHOD = METHODS["prompt-diffuser-best-of-multi-task"]
STEPS = 5 * TINY.history


def with_config(inputs: AdaptationInputs, **changes: int) -> AdaptationInputs:
    return replace(inputs, settings=replace(inputs.settings, **changes))


def prompts_of(inputs: AdaptationInputs) -> Segments:
    prompts = METHOD.adapt(inputs).policy.prompts
    assert isinstance(prompts, Segments)
    return prompts


def one_by_one(prompts: Segments, inputs: AdaptationInputs) -> torch.Tensor:
    """Score a prompt at a time on the five windows that all are scored on."""
    few_shot = inputs.few_shot
    planner = best_of.window_planner(inputs.backbone, few_shot.pool.index, STEPS, 1, (0, "best-of", inputs.task))
    plan = planner.at(0)
    history = few_shot.windows.segments(plan.episodes, plan.starts, plan.window_steps)
    assert len(history) == 5
    losses = []
    for row in range(len(prompts)):
        behind = prompts.select(torch.full((5,), row))
        errors = squared_action_errors(inputs.backbone, history, behind)
        losses.append(errors[history.valid].mean())
    return torch.stack(losses)


@pytest.mark.parametrize("together", [1, 7, 1024])
def test_losses_are_the_mean_squared_action_errors_however_many_are_scored_together(
    make_inputs: MakeInputs, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(best_of, "WINDOWS_TOGETHER", together)
    inputs = with_config(make_inputs(METHOD), batch_steps=STEPS)
    prompts = inputs.training().pool.prompts_at(torch.arange(9).numpy())
    torch.testing.assert_close(few_shot_losses(prompts, inputs), one_by_one(prompts, inputs))


def test_each_prompt_is_the_best_of_its_own_candidates(make_inputs: MakeInputs) -> None:
    inputs = with_config(make_inputs(METHOD), candidates=4, batch_steps=STEPS)
    chosen, diffuser = prompts_of(inputs), trained_diffuser(inputs)
    conditions, context = diffuser.conditions_in_turn(inputs.few_shot.pool, inputs.num_prompts)
    noise_KPCX = torch.stack([noise_of(diffuser, inputs, candidate) for candidate in range(4)], dim=2)
    for prompt in range(NUM_PROMPTS):
        same = torch.full((4,), prompt)
        candidates = diffuser.generate(conditions.select(same), context[same], noise_KPCX[:, prompt])
        best = int(one_by_one(candidates, inputs).argmin())
        torch.testing.assert_close(chosen.states[prompt], candidates.states[best])
        assert torch.equal(chosen.returns_to_go[prompt], conditions.returns_to_go[prompt])


def test_one_candidate_is_no_choice(make_inputs: MakeInputs) -> None:
    inputs, plain = with_config(make_inputs(METHOD), candidates=1), METHODS["prompt-diffuser-multi-task"]
    expected = plain.adapt(make_inputs(plain)).policy.prompts
    assert isinstance(expected, Segments)
    assert torch.equal(prompts_of(inputs).states, expected.states)


def test_few_shot_updates_come_before_the_choice(make_inputs: MakeInputs) -> None:
    method = METHODS["prompt-diffuser-best-of"]
    tuned, untuned = method.adapt(make_inputs(method)), METHOD.adapt(make_inputs(METHOD))
    assert isinstance(tuned.policy.prompts, Segments)
    assert isinstance(untuned.policy.prompts, Segments)
    assert not torch.equal(tuned.policy.prompts.states, untuned.policy.prompts.states)
    assert (tuned.cost.gradient_steps, untuned.cost.gradient_steps) == (2, 0)


def test_an_empty_choice_is_refused() -> None:
    for field in ("candidates", "batch_steps"):
        with pytest.raises(ValueError, match=rf"adaptation\.best_of\.{field} must be at least 1, got 0"):
            BestOfConfig(**{field: 0})
