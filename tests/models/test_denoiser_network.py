"""The denoiser: what its prediction depends on, its size, and the sizes it refuses."""

from typing import Any

import pytest
import torch

from promptdiffuser.models.denoiser import Denoiser, DenoiserConfig

X, Y, F, M = 12, 4, 5, 7


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    """Return a denoiser with a task context."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Denoiser(DenoiserConfig(hidden=32), X, Y, F).requires_grad_(False)


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
    denoiser = Denoiser(DenoiserConfig(hidden=32), X, Y, transition_features=0)
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
    embed = Denoiser(DenoiserConfig(time_features=time_features), X, Y, 0).embed_level
    levels_NT = embed(torch.arange(100)).detach()
    # By products, the fast way, close points have distance 0.
    distances = torch.cdist(levels_NT, levels_NT, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.add(torch.eye(100)).min() > 1e-5


@pytest.mark.parametrize(("transition_features", "known"), [(0, 208_823), (27, 225_047)])
def test_default_size_has_the_parameters_that_its_formula_gives(transition_features: int, known: int) -> None:
    """On cheetah-vel: five prompt steps of 20 observations, 6 actions and a reward."""
    denoiser = Denoiser(DenoiserConfig(), 5 * 27, 2 * 5, transition_features)

    def linear(inputs: int, outputs: int) -> int:
        return (inputs + 1) * outputs

    context = linear(27, 64) + linear(64, 64) + linear(64, 32) if transition_features else 0
    inputs = 135 + 16 + 10 + (32 if transition_features else 0)
    level = linear(16, 32) + linear(32, 16)
    expected = level + context + linear(inputs, 256) + 2 * linear(256, 256) + linear(256, 135)
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == expected == known


@pytest.mark.parametrize(
    "values",
    [
        {"hidden": 0},
        {"depth": 0},
        {"time_features": 0},
        {"time_features": 3},
        {"context_features": 0},
        {"context_hidden": -1},
    ],
)
def test_impossible_size_is_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"denoiser\.{next(iter(values))} must .*{next(iter(values.values()))}"):
        DenoiserConfig(**values)
