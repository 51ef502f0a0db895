"""Gated GELU against the formula, written out."""

from __future__ import annotations

import math

import pytest
import torch

from kernels.geglu import geglu, geglu_reference

TOLERANCES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("shape", [(2,), (3, 6), (2, 5, 14), (1, 3, 7, 2)])
def test_equals_the_reference(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    x = 3.0 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    result, expected = geglu(x), geglu_reference(x)
    assert result.shape == (*shape[:-1], shape[-1] // 2) and result.dtype == dtype
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def test_the_second_half_gates_the_first() -> None:
    a, gate = 3.0, -1.5
    expected = a * gate * 0.5 * (1.0 + math.erf(gate / math.sqrt(2.0)))
    result = geglu_reference(torch.tensor([a, gate], dtype=torch.float64))
    assert result.item() == pytest.approx(expected, rel=1e-12)
