"""Attention over frames against the formula, written out."""

from __future__ import annotations

import pytest
import torch

from kernels.attention import attention_reference
from kernels.temporal_attention import temporal_attention, temporal_attention_reference

SHAPES = [(1, 1, 1, 1, 1), (3, 5, 7, 3, 5), (2, 14, 6, 1, 8), (1, 2, 33, 4, 12), (2, 25, 3, 2, 16)]
TOLERANCES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize(("batch", "frames", "pixels", "heads", "head_dim"), SHAPES)
def test_equals_the_reference(
    batch: int, frames: int, pixels: int, heads: int, head_dim: int, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, batch, frames, pixels, heads * head_dim, generator=generator, dtype=dtype).unbind()
    result, expected = temporal_attention(*inputs, heads), temporal_attention_reference(*inputs, heads)
    assert result.dtype == dtype and result.shape == inputs[0].shape
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def test_the_reference_is_plain_attention_at_each_pixel() -> None:
    inputs = torch.randn(3, 2, 5, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).unbind()
    result = temporal_attention_reference(*inputs, 2)
    apart = [attention_reference(*(t[:, :, pixel] for t in inputs), 2) for pixel in range(4)]
    torch.testing.assert_close(result, torch.stack(apart, dim=2), rtol=1e-12, atol=1e-12)
    over_pixels = attention_reference(*(t.flatten(0, 1) for t in inputs), 2).view_as(result)
    assert (result - over_pixels).abs().max() > 0.1


def test_strided_inputs_are_read_where_they_lie() -> None:
    """Clips kept pixel by pixel in memory, as some other layer may leave them."""
    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64).transpose(1, 2) for _ in range(3)]
    expected = temporal_attention(*(t.contiguous() for t in inputs), 3)
    torch.testing.assert_close(temporal_attention(*inputs, 3), expected, rtol=1e-12, atol=1e-12)
