"""GroupNorm with SiLU against the formula, written out."""

from __future__ import annotations

import pytest
import torch

from kernels.group_norm_silu import frames_group_norm_silu, group_norm_silu, group_norm_silu_reference

SHAPES = [((3, 6, 5, 7), 3), ((1, 8, 1, 2), 1), ((2, 5, 3, 3), 5), ((2, 12, 9), 4), ((1, 4, 3, 5, 2), 2)]
TOLERANCES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("eps", [1e-6, 0.1])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_equals_the_reference(
    shape: tuple[int, ...], groups: int, eps: float, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 2.0 * torch.randn(shape, generator=generator, dtype=dtype) + 3.0
    weight, bias = torch.randn(2, shape[1], generator=generator, dtype=dtype)
    result, expected = (f(x, weight, bias, groups, eps) for f in (group_norm_silu, group_norm_silu_reference))
    assert result.dtype == dtype
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def test_the_reference_on_a_case_worked_by_hand() -> None:
    """Mean 3 and variance 4 in one group of two channels: normalised to -1 and 1, then silu(gain x + bias)."""
    x = torch.tensor([[[1.0], [5.0]]], dtype=torch.float64)
    weight, bias = torch.tensor([[2.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
    before = torch.tensor([[[-2.0], [3.0]]], dtype=torch.float64)
    result = group_norm_silu_reference(x, weight, bias, groups=1, eps=0.0)
    torch.testing.assert_close(result, before / (1.0 + torch.exp(-before)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize(("shape", "groups"), [((2, 3, 6, 5, 4), 3), ((1, 5, 8, 1, 2), 8), ((3, 1, 4, 2, 3), 2)])
def test_a_clip_is_normalised_over_its_frames_too(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    # Frames of different brightness: statistics of each frame alone would take that away.
    x = torch.randn(shape, generator=generator, dtype=dtype) + torch.arange(shape[1], dtype=dtype).view(-1, 1, 1, 1)
    weight, bias = torch.randn(2, shape[2], generator=generator, dtype=dtype)
    result = frames_group_norm_silu(x, weight, bias, groups, 1e-5)
    expected = group_norm_silu_reference(x.transpose(1, 2), weight, bias, groups, 1e-5).transpose(1, 2)
    assert result.shape == shape and result.dtype == dtype
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)
    alone = group_norm_silu(x.flatten(0, 1), weight, bias, groups, 1e-5).view(shape)
    assert shape[1] == 1 or (result - alone).abs().max() > 0.1
