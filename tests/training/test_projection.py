"""Gradient projection: what defines each reading, in float64, and what all of the registry promise."""

from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from promptdiffuser.training.projection import (
    PROJECTIONS,
    Projection,
    build_projection,
    complement,
    complement_in_conflict,
    leading_directions,
    weigh,
)

PROPERTY = settings(derandomize=True, deadline=None, max_examples=40)
MODEL = [(3, 4), (3,), (2, 3), (2,)]
"""Weights and biases of a small network."""
SIZES = [12, 3, 6, 2]
every_projection = pytest.mark.parametrize("name", PROJECTIONS)
EXACT = ["complement", "complement-tensor", "basis"]
"""Readings whose guidance is orthogonal to the present denoising gradient, without memory and at an energy of 1."""
WITH_MEMORY = ["complement-mean", "basis", "basis-mean"]


def build(name: str, energy: float = 0.9, decay: float = 0.0) -> Projection:
    return build_projection(name, [torch.zeros(shape, dtype=torch.float64) for shape in MODEL], energy, decay)


def gradients(seed: int, count: int = 2) -> Tensor:
    return torch.randn(count, sum(SIZES), generator=torch.Generator().manual_seed(seed)).double()


@st.composite
def gradient_pairs(draw: st.DrawFn, size: int | None = None) -> tuple[Tensor, Tensor]:
    """Return two float64 vectors of equal size, neither of them zero, of lengths up to 10^6 times apart."""
    size = size or draw(st.integers(2, 8))
    vectors = st.lists(st.integers(-100, 100), min_size=size, max_size=size).filter(any)
    scales = st.integers(-3, 3).map(lambda exponent: 10.0**exponent)
    first, second = (torch.tensor(draw(vectors), dtype=torch.float64) * draw(scales) for _ in range(2))
    return first, second


model_pairs = gradient_pairs(sum(SIZES))


def parallel(first: Tensor, second: Tensor) -> bool:
    return bool(first.dot(second).abs() > (1 - 1e-9) * first.norm() * second.norm())


def orthogonal(first: Tensor, second: Tensor, scale: Tensor) -> bool:
    return bool(first.dot(second).abs() <= 1e-12 * scale)


@PROPERTY
@given(gradient_pairs())
def test_complement_is_orthogonal_to_the_denoising_gradient(pair: tuple[Tensor, Tensor]) -> None:
    gradient_dm, gradient_dt = pair
    projected = complement(gradient_dm, gradient_dt)
    assert orthogonal(projected, gradient_dm, gradient_dm.norm() * gradient_dt.norm())


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


@PROPERTY
@given(gradient_pairs())
def test_in_conflict_alone_something_is_removed(pair: tuple[Tensor, Tensor]) -> None:
    gradient_dm, gradient_dt = pair
    found = complement_in_conflict(gradient_dm, gradient_dt)
    in_conflict = gradient_dm.dot(gradient_dt) < 0
    assert torch.equal(found, complement(gradient_dm, gradient_dt) if in_conflict else gradient_dt)
    # Guidance never raises the denoising loss to first order; where it lowers it, it still may.
    assert found.dot(gradient_dm) >= -1e-12 * gradient_dm.norm() * gradient_dt.norm()


def test_sum_keeps_the_downstream_gradient() -> None:
    gradient_dm, gradient_dt = gradients(0)
    assert torch.equal(build("sum")(gradient_dm, gradient_dt), gradient_dt)


@pytest.mark.parametrize("name", EXACT)
@PROPERTY
@given(model_pairs)
def test_guidance_is_orthogonal_to_the_denoising_gradient(name: str, pair: tuple[Tensor, Tensor]) -> None:
    gradient_dm, gradient_dt = pair
    kept = build(name, energy=1.0)(gradient_dm, gradient_dt)
    # A basis comes from a Gram matrix, whose rounding is that of the squared length.
    assert kept.dot(gradient_dm).abs() <= 1e-7 * gradient_dm.norm() * gradient_dt.norm()


@pytest.mark.parametrize("name", ["complement-tensor", "conflict-tensor"])
@PROPERTY
@given(model_pairs)
def test_by_tensor_is_the_global_rule_on_each_tensor(name: str, pair: tuple[Tensor, Tensor]) -> None:
    rule = {"complement-tensor": complement, "conflict-tensor": complement_in_conflict}[name]
    parts = zip(*(vector.split(SIZES) for vector in (*pair, build(name)(*pair))), strict=True)
    assert all(torch.equal(rule(dm, dt), kept) for dm, dt, kept in parts)


@pytest.mark.parametrize("name", ["complement", "conflict", "complement-mean", "sum"])
@PROPERTY
@given(model_pairs, st.permutations(range(sum(SIZES))))
def test_global_rules_do_not_know_how_parameters_are_cut_or_ordered(
    name: str, pair: tuple[Tensor, Tensor], order: list[int]
) -> None:
    gradient_dm, gradient_dt = pair
    one_tensor = build_projection(name, [torch.zeros(sum(SIZES)).double()], 0.9, 0.5)
    kept = build(name, decay=0.5)(gradient_dm, gradient_dt)
    other = one_tensor(gradient_dm[order], gradient_dt[order])
    torch.testing.assert_close(other, kept[order], rtol=0, atol=1e-12 * float(gradient_dt.norm()))


@every_projection
@PROPERTY
@given(model_pairs)
def test_projecting_twice_is_projecting_once(name: str, pair: tuple[Tensor, Tensor]) -> None:
    gradient_dm, gradient_dt = pair
    projection = build(name)
    once = projection(gradient_dm, gradient_dt)
    twice = projection(gradient_dm, once)
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-7 * float(gradient_dt.norm()))


@every_projection
@PROPERTY
@given(model_pairs, st.sampled_from([0.0, 0.9]))
def test_projection_never_lengthens_the_gradient_nor_turns_it_around(
    name: str, pair: tuple[Tensor, Tensor], decay: float
) -> None:
    gradient_dm, gradient_dt = pair
    projected = build(name, decay=decay)(gradient_dm, gradient_dt)
    assert projected.norm() <= gradient_dt.norm() * (1 + 1e-12)
    assert projected.dot(gradient_dt) >= -1e-12 * gradient_dt.norm() ** 2
    # What is removed is orthogonal to what is kept, as of every orthogonal projection.
    assert (gradient_dt - projected).dot(projected).abs() <= 1e-7 * gradient_dt.norm() ** 2


@every_projection
def test_shape_format_and_inputs_stay_and_everything_is_finite(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        projection = build_projection(name, [torch.zeros(shape, dtype=dtype) for shape in MODEL], 0.9, 0.5)
        pair = gradients(0).to(dtype)
        before = pair.clone()
        for _ in range(3):
            kept = projection(*pair)
            assert (kept.shape, kept.dtype) == (pair[1].shape, dtype)
            assert kept.isfinite().all()
        assert torch.equal(pair, before)


@every_projection
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_zero_gradients_are_safe(name: str, decay: float) -> None:
    gradient_dt, zeros = gradients(0)[1], torch.zeros(sum(SIZES)).double()
    projection = build(name, decay=decay)
    assert torch.equal(projection(zeros, gradient_dt), gradient_dt)
    assert torch.equal(projection(zeros, zeros), zeros)
    assert projection(gradients(1)[0], zeros).norm() == 0


@every_projection
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_memory_that_is_put_back_goes_on_as_if_unbroken(name: str, decay: float) -> None:
    unbroken = build(name, decay=decay)
    unbroken(*gradients(0))
    resumed = build(name, decay=decay)
    assert resumed.memory.keys() == unbroken.memory.keys()
    for key, remembered in resumed.memory.items():
        remembered.copy_(unbroken.memory[key])
    assert torch.equal(resumed(*gradients(1)), unbroken(*gradients(1)))
    assert bool(unbroken.memory) == (name in WITH_MEMORY)


def test_only_rules_with_a_memory_depend_on_the_past() -> None:
    for name in PROJECTIONS:
        fresh, used = build(name, decay=0.9), build(name, decay=0.9)
        used(*gradients(0))
        assert torch.equal(fresh(*gradients(1)), used(*gradients(1))) == (name not in WITH_MEMORY), name


def test_complement_of_the_mean_is_orthogonal_to_the_running_mean() -> None:
    projection, mean = build("complement-mean", decay=0.7), torch.zeros(sum(SIZES)).double()
    for seed in range(5):
        gradient_dm, gradient_dt = gradients(seed)
        mean = 0.7 * mean + 0.3 * gradient_dm
        kept = projection(gradient_dm, gradient_dt)
        torch.testing.assert_close(kept, complement(mean, gradient_dt))
        assert orthogonal(kept, mean, mean.norm() * gradient_dt.norm())


@pytest.mark.parametrize(("name", "decay"), [("basis", 0.6), ("basis-mean", 0.6), ("basis", 0.0)])
def test_a_basis_is_that_of_the_singular_value_decomposition(name: str, decay: float) -> None:
    """`basis` stacks past gradients, each weighted by decay^age; `basis-mean` decomposes their running mean."""
    projection, energy, past = build(name, 0.8, decay), 0.8, []
    for seed in range(4):
        gradient_dm, gradient_dt = gradients(seed)
        past.append(gradient_dm)
        kept = projection(gradient_dm, gradient_dt)
    cuts = [0, *torch.tensor(SIZES).cumsum(0).tolist()]
    for (first, last), shape in zip(pairwise(cuts), MODEL, strict=True):
        matrices = [vector[first:last].reshape(shape[0], -1) for vector in past]
        ages = range(len(past) - 1, -1, -1)
        if name == "basis":
            matrix = torch.cat([decay ** (age / 2) * m for age, m in zip(ages, matrices, strict=True)])
        else:
            matrix = sum(decay**age * m for age, m in zip(ages, matrices, strict=True))
        _, singular_values, right = torch.linalg.svd(matrix)
        share = singular_values.square().cumsum(0) / singular_values.square().sum()
        rank = int((share < energy).sum()) + 1
        downstream = gradient_dt[first:last].reshape(shape[0], -1)
        expected = downstream @ right[rank:].T @ right[rank:]
        torch.testing.assert_close(kept[first:last].reshape(shape[0], -1), expected, rtol=0, atol=1e-9)


@PROPERTY
@given(model_pairs, st.sampled_from([0.5, 0.9, 0.99]))
def test_a_basis_bounds_the_change_of_the_denoising_loss_by_the_energy_it_lacks(
    pair: tuple[Tensor, Tensor], energy: float
) -> None:
    gradient_dm, gradient_dt = pair
    kept = build("basis", energy)(gradient_dm, gradient_dt)
    bound = (1 - energy) ** 0.5 * kept.norm() * gradient_dm.norm()
    assert kept.dot(gradient_dm).abs() <= bound + 1e-9 * gradient_dm.norm() * gradient_dt.norm()


def test_a_bias_is_a_weight_of_a_constant_input_and_not_guided_by_a_basis() -> None:
    for part in build("basis")(*gradients(0)).split(SIZES)[1::2]:
        assert part.norm() <= 1e-12


def test_leading_directions_are_the_fewest_that_hold_the_energy() -> None:
    gram = torch.diag(torch.tensor([1.0, 6.0, 0.0, 3.0]))
    for energy, held in ((0.5, [1]), (0.6, [1]), (0.7, [1, 3]), (0.9, [1, 3]), (0.95, [0, 1, 3]), (1.0, [0, 1, 3])):
        directions = leading_directions(gram, energy)
        assert sorted(directions.abs().argmax(dim=0).tolist()) == held, energy
    assert leading_directions(torch.zeros(3, 3), 0.9).shape == (3, 0)


@every_projection
@PROPERTY
@given(model_pairs, st.sampled_from([0.5, 1.0, 5.0]))
def test_matched_norms_make_the_guidance_as_long_as_weight_says(
    name: str, pair: tuple[Tensor, Tensor], weight: float
) -> None:
    gradient_dm, gradient_dt = pair
    kept = build(name)(gradient_dm, gradient_dt)
    assume(kept.norm() > 1e-4 * gradient_dt.norm())
    guidance, _ = weigh(gradient_dm, gradient_dt, kept, weight, match_norms=True)
    assert float(guidance.norm()) == pytest.approx(weight * float(gradient_dm.norm()), rel=1e-6)


@every_projection
@PROPERTY
@given(model_pairs, st.sampled_from([0.5, 1.0, 5.0]))
def test_unmatched_norms_weight_the_projected_gradient(name: str, pair: tuple[Tensor, Tensor], weight: float) -> None:
    gradient_dm, gradient_dt = pair
    kept = build(name)(gradient_dm, gradient_dt)
    guidance, _ = weigh(gradient_dm, gradient_dt, kept, weight, match_norms=False)
    torch.testing.assert_close(guidance, weight * kept, rtol=0, atol=weight * 1e-5 * float(gradient_dt.norm()))


@PROPERTY
@given(gradient_pairs(), st.booleans())
def test_to_first_order_guidance_changes_the_denoising_loss_as_if_absent(
    pair: tuple[Tensor, Tensor], match_norms: bool
) -> None:
    gradient_dm, gradient_dt = pair
    assume(not parallel(gradient_dm, gradient_dt))
    guidance, _ = weigh(gradient_dm, gradient_dt, complement(gradient_dm, gradient_dt), 5.0, match_norms)
    assert guidance.dot(gradient_dm).abs() <= 1e-6 * (guidance.norm() + gradient_dm.norm()) * gradient_dm.norm()


@every_projection
@pytest.mark.parametrize("match_norms", [True, False])
def test_a_zero_downstream_gradient_guides_nowhere(name: str, match_norms: bool) -> None:
    """It is exactly zero where every feature of the generated prompts is clipped to its bounds."""
    gradient_dm, zeros = gradients(0)[0], torch.zeros(sum(SIZES)).double()
    guidance, metrics = weigh(gradient_dm, zeros, build(name)(gradient_dm, zeros), 5.0, match_norms)
    assert guidance.norm() == 0
    assert metrics["norm_dt"] == metrics["cosine"] == 0


@every_projection
@pytest.mark.parametrize("match_norms", [True, False])
def test_a_zero_denoising_gradient_gives_finite_guidance(name: str, match_norms: bool) -> None:
    zeros, gradient_dt = torch.zeros(sum(SIZES)).double(), gradients(0)[1]
    guidance, metrics = weigh(zeros, gradient_dt, build(name)(zeros, gradient_dt), 5.0, match_norms)
    assert guidance.isfinite().all()
    assert metrics["norm_dm"] == metrics["cosine"] == 0


def test_a_parallel_downstream_gradient_guides_nowhere() -> None:
    """What is left after projection is rounding noise, which matching norms must not blow up to an update."""
    gradient_dm = torch.randn(1_000, generator=torch.Generator().manual_seed(0))
    gradient_dt = 0.3 * gradient_dm
    guidance, _ = weigh(gradient_dm, gradient_dt, complement(gradient_dm, gradient_dt), 5.0, match_norms=True)
    assert guidance.norm() <= 1e-3


def test_metrics_describe_the_two_gradients() -> None:
    gradient_dm, gradient_dt = torch.tensor([2.0, 0.0]), torch.tensor([3.0, 4.0])
    _, metrics = weigh(gradient_dm, gradient_dt, complement(gradient_dm, gradient_dt), 1.0, match_norms=True)
    assert metrics == pytest.approx({"norm_dm": 2.0, "norm_dt": 5.0, "cosine": 0.6, "share_removed": 0.2})
