"""RMS normalisation against the formula, written out."""

from __future__ import annotations

import pytest
import torch

from kernels.rms_norm import rms_norm, rms_norm_reference

TOLERANCES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]
SHAPES = [((3,), 1), ((2, 6), 3), ((2, 5, 24), 8), ((1, 3, 7, 10), 10), ((4, 1, 192), 64)]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize(("shape", "run"), SHAPES)
def test_equals_the_reference(shape: tuple[int, ...], run: int, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 3.0 * torch.randn(shape, generator=generator, dtype=dtype)
    weight = torch.randn(run, generator=generator, dtype=dtype)
    result, expected = rms_norm(x, weight, 1e-2), rms_norm_reference(x, weight, 1e-2)
    assert result.shape == shape and result.dtype == dtype
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def test_the_reference_on_a_case_worked_by_hand() -> None:
    """Two runs of two: mean squares 25 / 2 and 2, and an epsilon that makes them 16 and 5.5."""
    x = torch.tensor([3.0, 4.0, -2.0, 0.0], dtype=torch.float64)
    weight = torch.tensor([8.0, 1.0], dtype=torch.float64)
    expected = torch.tensor([6.0, 1.0, -16.0 / 5.5**0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(rms_norm_reference(x, weight, 3.5), expected, rtol=1e-12, atol=1e-12)


def test_half_precision_does_not_overflow_in_the_square() -> None:
    """300^2 is beyond fp16."""
    x = torch.tensor([300.0, -300.0], dtype=torch.float16)
    result = rms_norm(x, torch.ones(2, dtype=torch.float16), 1e-6)
    assert result.dtype == torch.float16 and result.tolist() == [1.0, -1.0]


def test_channels_that_are_no_multiple_of_the_run_are_refused() -> None:
    with pytest.raises(RuntimeError, match="invalid for input of size 14"):
        rms_norm(torch.ones(2, 7), torch.ones(3), 1e-6)
