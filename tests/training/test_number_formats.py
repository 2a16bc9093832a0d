"""The number format that `autocast` gives matrix products."""

import pytest
import torch

from promptdiffuser.training.precision import PRECISIONS, autocast, best_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_matrix_products_have_the_named_format(precision: str) -> None:
    matrix = torch.eye(4)
    with autocast(precision, CPU):
        assert (matrix @ matrix).dtype == PRECISIONS[precision]
    assert (matrix @ matrix).dtype == torch.float32


def test_auto_is_the_best_of_the_hardware() -> None:
    matrix = torch.eye(4)
    with autocast("auto", CPU):
        assert (matrix @ matrix).dtype == PRECISIONS[best_precision(CPU)]


def test_fp32_computes_exactly_as_without_autocast() -> None:
    matrix = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    with autocast("fp32", CPU):
        inside = matrix @ matrix
    assert torch.equal(inside, matrix @ matrix)


def test_fp32_inside_bf16_is_fp32() -> None:
    matrix = torch.eye(4)
    with autocast("bf16", CPU), autocast("fp32", CPU):
        assert (matrix @ matrix).dtype == torch.float32
