"""The rank estimator against its definition, and against gradients that are known."""

import itertools

import pytest
import torch

from promptdiffuser.methods.shared.rank_search import RankSearchConfig, rank_gradient, rank_search

X = 12


def quadratic(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a positive definite matrix (X, X) and a minimum (X,)."""
    generator = torch.Generator().manual_seed(seed)
    root, centre = torch.randn(X, X, generator=generator), torch.randn(X, generator=generator)
    return root @ root.T / X + 0.1 * torch.eye(X), centre


@pytest.mark.parametrize("top", [0, 3])
def test_estimate_is_the_mean_difference_over_the_pairs_whose_order_is_known(top: int) -> None:
    generator = torch.Generator().manual_seed(1)
    noise, losses = torch.randn(2, 7, X, generator=generator), torch.randn(2, 7, generator=generator)
    estimate = rank_gradient(noise, losses, top)
    for row in range(2):
        order = losses[row].argsort().tolist()
        known = set(order[: top or 7])
        pairs = [(i, j) for i, j in itertools.combinations(order, 2) if i in known]
        expected = torch.stack([noise[row, j] - noise[row, i] for i, j in pairs]).mean(0)
        torch.testing.assert_close(estimate[row], expected)


@pytest.mark.parametrize("top", [0, 400])
def test_estimate_has_the_direction_of_a_quadratics_gradient(top: int) -> None:
    matrix, centre = quadratic()
    start = torch.randn(3, X, generator=torch.Generator().manual_seed(2))
    smoothing = 1e-3
    noise = torch.randn(3, 2000, X, generator=torch.Generator().manual_seed(3))
    away = start[:, None] + smoothing * noise - centre
    losses = torch.einsum("pmx,xy,pmy->pm", away.double(), matrix.double(), away.double())
    gradient = 2 * (start - centre) @ matrix
    cosines = torch.cosine_similarity(rank_gradient(noise, losses, top), gradient)
    assert (cosines > 0.98).all()


def test_a_loss_that_is_not_a_number_is_the_worst() -> None:
    noise = torch.randn(1, 5, X, generator=torch.Generator().manual_seed(4))
    losses = torch.tensor([[0.3, torch.nan, 0.1, 2.0, 1.0]])
    expected = rank_gradient(noise, torch.tensor([[0.3, 9.0, 0.1, 2.0, 1.0]]))
    assert torch.equal(rank_gradient(noise, losses), expected)


def test_searches_side_by_side_descend_their_own_losses() -> None:
    centres = torch.stack([quadratic(seed)[1] for seed in range(4)])
    config = RankSearchConfig(steps=150, smoothing=0.1, step_size=0.05)
    found = rank_search(
        torch.zeros(4, X), lambda at_PMX, step: (at_PMX - centres[:, None]).square().sum(2), config, ("test",)
    )
    assert ((found - centres).norm(dim=1) < 0.25 * centres.norm(dim=1)).all()
    assert torch.equal(
        found,
        rank_search(torch.zeros(4, X), lambda at_PMX, step: (at_PMX - centres[:, None]).norm(dim=2), config, ("test",)),
    ), "only the order of losses counts"
