"""Adaptive layer normalisation and the gated residual against the formulas, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.adaln import gated_residual, gated_residual_reference, modulate, modulate_reference

TOLERANCES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]
SHAPES = [(1, 1, 2), (3, 5, 7), (2, 33, 64), (5, 2, 130)]


def inputs(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and y [B, N, C], far from mean 0 and variance 1; two rows [B, 1, C] of the conditioning."""
    generator = torch.Generator().manual_seed(0)
    batch, length, channels = shape
    x, y = (2.0 + 3.0 * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    # As the blocks hand them over: slices of one wide row.
    rows = torch.randn(batch, 1, 2 * channels, generator=generator, dtype=dtype).chunk(2, dim=-1)
    return x, y, *rows


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_the_references(shape: tuple[int, int, int], dtype: torch.dtype, tolerance: float) -> None:
    x, y, scale, shift = inputs(shape, dtype)
    pairs = [
        (modulate(x, scale, shift, 1e-2), modulate_reference(x, scale, shift, 1e-2)),
        (gated_residual(x, scale, y), gated_residual_reference(x, scale, y)),
    ]
    for result, expected in pairs:
        assert result.shape == shape and result.dtype == dtype
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def test_the_references_on_a_case_worked_by_hand() -> None:
    """One token of mean 3 and variance 1; the epsilon makes that 4."""
    x = torch.tensor([[[2.0, 4.0]]], dtype=torch.float64)
    scale = torch.tensor([[[1.0, -0.5]]], dtype=torch.float64)
    shift = torch.tensor([[[10.0, 20.0]]], dtype=torch.float64)
    assert modulate_reference(x, scale, shift, 3.0).tolist() == [[[9.0, 20.25]]]
    assert gated_residual_reference(x, scale, shift).tolist() == [[[12.0, -6.0]]]


def test_the_epsilon_of_the_networks_is_the_default() -> None:
    x, _, scale, shift = inputs((1, 3, 8), torch.float64)
    small = 1e-3 * x  # a variance near the epsilon, or it would not show
    result = modulate(small, scale, shift)
    torch.testing.assert_close(result, modulate_reference(small, scale, shift, 1e-6), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(result, modulate_reference(small, scale, shift, 1e-5), rtol=1e-2, atol=1e-2)
