"""The denoiser: what its prediction depends on, its guidance, its size, and what it refuses.

Axes: B rows, X features of a flattened prompt, Y features of a condition, M context transitions, F their features.
"""

from typing import Any

import pytest
import torch

from promptdiffuser.models.denoiser import ARCHITECTURES, Denoiser, DenoiserConfig

SHAPE = (3, 4)
X, Y, F, M = 12, 4, 5, 7


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(transition_features: int = F, shape: tuple[int, int] = SHAPE, **options: Any) -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Denoiser(DenoiserConfig(hidden=32, **options), shape, Y, transition_features).requires_grad_(False)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def denoiser(request: pytest.FixtureRequest) -> Denoiser:
    """Return a denoiser with a task context."""
    return build(architecture=request.param)


def test_the_order_of_context_transitions_does_not_matter(denoiser: Denoiser) -> None:
    y_BY, transitions_BMF = normal(3, Y), normal(3, M, F, seed=1)
    shuffled_BMF = transitions_BMF[:, torch.tensor([6, 2, 0, 5, 1, 4, 3])]
    torch.testing.assert_close(denoiser.condition(y_BY, shuffled_BMF), denoiser.condition(y_BY, transitions_BMF))


def test_repeating_the_context_does_not_matter(denoiser: Denoiser) -> None:
    """A mean, not a sum: the number of few-shot episodes may differ between training and adaptation."""
    y_BY, transitions_BMF = normal(3, Y), normal(3, M, F, seed=1)
    torch.testing.assert_close(
        denoiser.condition(y_BY, transitions_BMF.repeat(1, 4, 1)), denoiser.condition(y_BY, transitions_BMF)
    )


def test_every_transition_changes_the_context(denoiser: Denoiser) -> None:
    y_BY, transitions_BMF = normal(3, Y), normal(3, M, F, seed=1)
    before = denoiser.condition(y_BY, transitions_BMF)
    for index in range(M):
        changed_BMF = transitions_BMF.clone()
        changed_BMF[:, index] += 1
        after = denoiser.condition(y_BY, changed_BMF)
        assert torch.equal(after[:, :Y], y_BY)
        assert ((after - before)[:, Y:].abs().amax(-1) > 1e-4).all()


def test_the_published_variant_ignores_transitions() -> None:
    denoiser = build(transition_features=0)
    y_BY = normal(3, Y)
    assert torch.equal(denoiser.condition(y_BY, normal(3, M, F)), y_BY)
    assert not any("context" in name for name, _ in denoiser.named_parameters())


def test_prediction_depends_on_all_three_inputs(denoiser: Denoiser) -> None:
    x_BX, step_B = normal(3, X), torch.zeros(3, dtype=torch.int64)
    condition_BC = denoiser.condition(normal(3, Y, seed=2), normal(3, M, F, seed=1))
    before = denoiser(x_BX, step_B, condition_BC)
    assert before.shape == (3, X)
    for inputs in ((x_BX + 1, step_B, condition_BC), (x_BX, step_B + 1, condition_BC), (x_BX, step_B, -condition_BC)):
        assert ((denoiser(*inputs) - before).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("time_features", [2, 16])
def test_noise_levels_are_embedded_differently(time_features: int) -> None:
    torch.manual_seed(0)
    embed = Denoiser(DenoiserConfig(time_features=time_features), SHAPE, Y, 0).embed_level
    levels_NT = embed(torch.arange(100)).detach()
    # By products, the fast way, close points have distance 0.
    distances = torch.cdist(levels_NT, levels_NT, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.add(torch.eye(100)).min() > 1e-5


@pytest.mark.parametrize(("transition_features", "known"), [(0, 208_823), (27, 225_047)])
def test_default_size_has_the_parameters_that_its_formula_gives(transition_features: int, known: int) -> None:
    """On cheetah-vel: five prompt steps of 20 observations, 6 actions and a reward."""
    denoiser = Denoiser(DenoiserConfig(), (5, 27), 2 * 5, transition_features)

    def linear(inputs: int, outputs: int) -> int:
        return (inputs + 1) * outputs

    context = linear(27, 64) + linear(64, 64) + linear(64, 32) if transition_features else 0
    inputs = 135 + 16 + 10 + (32 if transition_features else 0)
    level = linear(16, 32) + linear(32, 16)
    expected = level + context + linear(inputs, 256) + 2 * linear(256, 256) + linear(256, 135)
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == expected == known


@pytest.mark.parametrize("length", [1, 2, 5, 11, 21, 40])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_prompt_length_is_denoised_as_a_whole(architecture: str, length: int) -> None:
    """The prediction of every step depends on every other step, also in the longest published prompt."""
    denoiser = build(0, (length, 3), architecture=architecture).double()
    x_BX, step_B, y_BY = normal(2, length * 3).double(), torch.tensor([0, 3]), normal(2, Y).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: denoiser(x, step_B, y_BY).sum(0), x_BX)
    between_PP = jacobian[:, 0].abs().reshape(length, 3, length, 3).amax((1, 3))
    assert (between_PP > 0).all()


def test_a_transformer_tells_steps_apart_by_their_place() -> None:
    denoiser = build(architecture="transformer")
    same_BX = normal(1, SHAPE[1]).repeat(2, SHAPE[0])
    condition_BC = denoiser.condition(normal(2, Y), normal(2, M, F))
    steps_BPS = denoiser(same_BX, torch.zeros(2, dtype=torch.int64), condition_BC).unflatten(1, SHAPE)
    assert (steps_BPS[:, 0] - steps_BPS[:, 1]).abs().max() > 1e-4


def test_transformer_has_the_parameters_that_its_formula_gives() -> None:
    width, layers = 64, 3
    denoiser = Denoiser(DenoiserConfig(architecture="transformer", hidden=width), (5, 27), 2 * 5, 0)
    block = 4 * (width + 1) * width + (width + 1) * 4 * width + (4 * width + 1) * width + 2 * 2 * width
    level = 17 * 32 + 33 * 16
    ends = 28 * width + (16 + 10 + 1) * width + 5 * width + 2 * width + (width + 1) * 27
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == layers * block + level + ends == 156_747


def test_guidance_goes_from_the_absent_condition_through_the_real_one(denoiser: Denoiser) -> None:
    """Both halves are evaluated in one batch, and say what they say alone."""
    x_BX, step_B = normal(3, X), torch.tensor([0, 2, 4])
    condition_BC = denoiser.condition(normal(3, Y, seed=2), normal(3, M, F, seed=1))
    conditional, absent = denoiser(x_BX, step_B, condition_BC), denoiser(x_BX, step_B, 0 * condition_BC)
    assert (conditional - absent).abs().max() > 1e-3
    assert torch.equal(denoiser.guided(x_BX, step_B, condition_BC), conditional)
    for weight in (0.0, 0.5, 1.2, 5.0):
        guided = build(architecture=denoiser.config.architecture, condition_dropout=0.1, condition_weight=weight)
        expected = (1 - weight) * absent + weight * conditional
        torch.testing.assert_close(guided.guided(x_BX, step_B, condition_BC), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("transition_features", [0, 27])
def test_a_learned_absent_condition_has_a_parameter_for_each_number_of_a_condition(transition_features: int) -> None:
    """It is drawn from nothing, so all other initial weights are those of the network without it."""
    options = {"condition_dropout": 0.2, "condition_weight": 1.5}
    zeros, learned = (
        build(transition_features, null_condition=kind, **options).state_dict() for kind in ("zeros", "learned")
    )
    absent_C = learned.pop("absent_C")
    assert torch.equal(absent_C, torch.zeros(Y + (32 if transition_features else 0)))
    assert all(torch.equal(learned.pop(name), value) for name, value in zeros.items())
    assert not learned


def test_guidance_starts_from_the_learned_absent_condition(denoiser: Denoiser) -> None:
    options = {"condition_dropout": 0.1, "condition_weight": 2.5, "null_condition": "learned"}
    guided = build(architecture=denoiser.config.architecture, **options)
    guided.absent_C.copy_(normal(Y + 32, seed=5))
    x_BX, step_B = normal(3, X), torch.tensor([0, 2, 4])
    condition_BC = denoiser.condition(normal(3, Y, seed=2), normal(3, M, F, seed=1))
    conditional, absent = denoiser(x_BX, step_B, condition_BC), denoiser(x_BX, step_B, guided.absent_C.expand(3, -1))
    expected = -1.5 * absent + 2.5 * conditional
    torch.testing.assert_close(guided.guided(x_BX, step_B, condition_BC), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"architecture": "unet"}, "architecture 'unet' is unknown; known: mlp, transformer"),
        ({"architecture": "transformer", "hidden": 30}, r"heads must divide denoiser\.hidden \(30\), got 4"),
        ({"condition_dropout": 1.0}, "condition_dropout must be at least 0 and below 1, got 1.0"),
        ({"condition_dropout": -0.1}, "condition_dropout must be at least 0 and below 1, got -0.1"),
        ({"condition_dropout": 0.2, "condition_weight": -1.0}, "condition_weight must not be negative .* got -1.0"),
        ({"condition_weight": 1.2}, r"condition_weight 1\.2 needs a denoiser\.condition_dropout above 0"),
        ({"null_condition": "ones"}, "null_condition must be zeros or learned, got 'ones'"),
        ({"null_condition": "learned"}, r"null_condition learned needs a denoiser\.condition_dropout above 0"),
    ],
)
def test_impossible_choice_is_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"denoiser\.{named}"):
        DenoiserConfig(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"hidden": 0},
        {"depth": 0},
        {"heads": 0},
        {"time_features": 0},
        {"time_features": 3},
        {"context_features": 0},
        {"context_hidden": -1},
    ],
)
def test_impossible_size_is_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"denoiser\.{next(iter(values))} must .*{next(iter(values.values()))}"):
        DenoiserConfig(**values)
