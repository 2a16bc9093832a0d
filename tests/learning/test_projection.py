"""Gradient projection: geometry in float64, and what `join` promises for every rule."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from promptdiffuser.learning.projection import PROJECTIONS, complement, join

PROPERTY = settings(derandomize=True, deadline=None)
every_projection = pytest.mark.parametrize("projection", PROJECTIONS)


@st.composite
def gradient_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Return two float64 vectors of equal size, neither of them zero, of lengths up to 10^6 times apart."""
    size = draw(st.integers(2, 8))
    vectors = st.lists(st.integers(-100, 100), min_size=size, max_size=size).filter(any)
    scales = st.integers(-3, 3).map(lambda exponent: 10.0**exponent)
    first, second = (torch.tensor(draw(vectors), dtype=torch.float64) * draw(scales) for _ in range(2))
    return first, second


def parallel(first: Tensor, second: Tensor) -> bool:
    return bool(first.dot(second).abs() > (1 - 1e-9) * first.norm() * second.norm())


@PROPERTY
@given(gradient_pairs())
def test_complement_is_orthogonal_to_the_denoising_gradient(pair: tuple[Tensor, Tensor]) -> None:
    gradient_dm, gradient_dt = pair
    projected = complement(gradient_dm, gradient_dt)
    assert projected.dot(gradient_dm).abs() <= 1e-12 * gradient_dm.norm() * gradient_dt.norm()


@PROPERTY
@given(gradient_pairs())
def test_complement_is_idempotent(pair: tuple[Tensor, Tensor]) -> None:
    gradient_dm, gradient_dt = pair
    once = complement(gradient_dm, gradient_dt)
    torch.testing.assert_close(complement(gradient_dm, once), once, rtol=0, atol=1e-12 * float(gradient_dt.norm()))


@PROPERTY
@given(gradient_pairs())
def test_complement_removes_a_multiple_of_the_denoising_gradient_alone(pair: tuple[Tensor, Tensor]) -> None:
    gradient_dm, gradient_dt = pair
    removed = gradient_dt - complement(gradient_dm, gradient_dt)
    unit = gradient_dm / gradient_dm.norm()
    torch.testing.assert_close(removed, removed.dot(unit) * unit, rtol=0, atol=1e-12 * float(gradient_dt.norm()))


def test_complement_leaves_an_orthogonal_gradient_unchanged() -> None:
    gradient_dm, gradient_dt = torch.tensor([3.0, 0.0, 4.0]).double(), torch.tensor([-4.0, 7.0, 3.0]).double()
    assert torch.equal(complement(gradient_dm, gradient_dt), gradient_dt)


def test_complement_of_a_zero_denoising_gradient_keeps_everything() -> None:
    gradient_dt = torch.tensor([1.0, -2.0]).double()
    assert torch.equal(complement(torch.zeros(2).double(), gradient_dt), gradient_dt)


def test_sum_keeps_the_downstream_gradient() -> None:
    gradient_dm, gradient_dt = torch.tensor([3.0, 1.0]), torch.tensor([-4.0, 7.0])
    assert torch.equal(PROJECTIONS["sum"](gradient_dm, gradient_dt), gradient_dt)


@every_projection
def test_projection_never_lengthens_the_gradient_nor_turns_it_around(projection: str) -> None:
    pairs = torch.randn(50, 2, 6, generator=torch.Generator().manual_seed(0)).double()
    for gradient_dm, gradient_dt in pairs:
        projected = PROJECTIONS[projection](gradient_dm, gradient_dt)
        assert projected.norm() <= gradient_dt.norm() * (1 + 1e-12)
        assert projected.dot(gradient_dt) > 0


@every_projection
@PROPERTY
@given(gradient_pairs(), st.sampled_from([0.5, 1.0, 5.0]))
def test_matched_norms_make_the_guidance_as_long_as_weight_says(
    projection: str, pair: tuple[Tensor, Tensor], weight: float
) -> None:
    gradient_dm, gradient_dt = pair
    assume(not parallel(gradient_dm, gradient_dt))
    joined, _ = join(gradient_dm, gradient_dt, projection, weight, match_norms=True)
    assert float((joined - gradient_dm).norm()) == pytest.approx(weight * float(gradient_dm.norm()), rel=1e-6)


@every_projection
@PROPERTY
@given(gradient_pairs(), st.sampled_from([0.5, 1.0, 5.0]))
def test_unmatched_norms_weight_the_projected_gradient(
    projection: str, pair: tuple[Tensor, Tensor], weight: float
) -> None:
    gradient_dm, gradient_dt = pair
    joined, _ = join(gradient_dm, gradient_dt, projection, weight, match_norms=False)
    torch.testing.assert_close(joined, gradient_dm + weight * PROJECTIONS[projection](gradient_dm, gradient_dt))


@PROPERTY
@given(gradient_pairs(), st.booleans())
def test_to_first_order_guidance_changes_the_denoising_loss_as_if_absent(
    pair: tuple[Tensor, Tensor], match_norms: bool
) -> None:
    gradient_dm, gradient_dt = pair
    assume(not parallel(gradient_dm, gradient_dt))
    joined, _ = join(gradient_dm, gradient_dt, "complement", 5.0, match_norms)
    guidance = joined - gradient_dm
    assert guidance.dot(gradient_dm).abs() <= 1e-6 * (guidance.norm() + gradient_dm.norm()) * gradient_dm.norm()


@every_projection
@pytest.mark.parametrize("match_norms", [True, False])
def test_a_zero_downstream_gradient_leaves_the_denoising_gradient(projection: str, match_norms: bool) -> None:
    """It is exactly zero where every feature of the generated prompts is clipped to its bounds."""
    gradient_dm = torch.full((4,), 10.0)
    joined, metrics = join(gradient_dm, torch.zeros(4), projection, 5.0, match_norms)
    assert torch.equal(joined, gradient_dm)
    assert metrics["norm_dt"] == metrics["cosine"] == 0


@every_projection
@pytest.mark.parametrize("match_norms", [True, False])
def test_a_zero_denoising_gradient_gives_a_finite_update(projection: str, match_norms: bool) -> None:
    joined, metrics = join(torch.zeros(4), torch.ones(4), projection, 5.0, match_norms)
    assert joined.isfinite().all()
    assert metrics["norm_dm"] == metrics["cosine"] == 0


def test_a_parallel_downstream_gradient_leaves_the_denoising_gradient() -> None:
    """What is left after projection is rounding noise, which matching norms must not blow up to an update."""
    gradient_dm = torch.randn(1_000, generator=torch.Generator().manual_seed(0))
    joined, _ = join(gradient_dm, 0.3 * gradient_dm, "complement", 5.0, match_norms=True)
    torch.testing.assert_close(joined, gradient_dm, atol=1e-3, rtol=0)


def test_metrics_describe_the_two_gradients() -> None:
    gradient_dm, gradient_dt = torch.tensor([2.0, 0.0]), torch.tensor([3.0, 4.0])
    _, metrics = join(gradient_dm, gradient_dt, "complement", 1.0, match_norms=True)
    assert metrics == pytest.approx({"norm_dm": 2.0, "norm_dt": 5.0, "cosine": 0.6, "share_removed": 0.2})
