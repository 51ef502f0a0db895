"""Convolution over frames against the formula, written out, and against torch's 3-D convolution."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
import torch.nn.functional as F

from kernels.backend import IMPLEMENTATIONS, chosen, selected
from kernels.temporal_conv import temporal_conv, temporal_conv_reference

SHAPES = [((1, 1, 1, 1, 1), 1), ((3, 5, 4, 3, 2), 6), ((2, 14, 6, 5, 7), 3), ((1, 2, 3, 1, 9), 5)]
TOLERANCES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_equals_the_reference(
    shape: tuple[int, ...], outputs: int, dtype: torch.dtype, tolerance: float, bias: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    weight = torch.randn(outputs, shape[2], 3, 1, 1, generator=generator, dtype=dtype)
    offset = torch.randn(outputs, generator=generator, dtype=dtype) if bias else None
    result, expected = temporal_conv(x, weight, offset), temporal_conv_reference(x, weight, offset)
    assert result.dtype == dtype and result.shape == (*shape[:2], outputs, *shape[3:])
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)
    whole = F.conv3d(x.transpose(1, 2), weight, offset, padding=(1, 0, 0)).transpose(1, 2)
    torch.testing.assert_close(expected, whole, rtol=tolerance, atol=tolerance)


def test_the_reference_on_a_case_worked_by_hand() -> None:
    """One pixel, frames 1, 10, 100; taps 2, 3, 5 read the frame before, the frame and the frame after; bias 7."""
    x = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64).view(1, 3, 1, 1, 1)
    weight = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64).view(1, 1, 3, 1, 1)
    result = temporal_conv_reference(x, weight, torch.tensor([7.0], dtype=torch.float64))
    assert result.flatten().tolist() == [3 + 50 + 7, 2 + 30 + 500 + 7, 20 + 300 + 7]


def test_frames_behind_channels_in_memory_are_read_too() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 5, 3, 2, generator=generator, dtype=torch.float64).transpose(1, 2)
    weight = torch.randn(6, 4, 3, 1, 1, generator=generator, dtype=torch.float64)
    expected = temporal_conv(x.contiguous(), weight, None)
    torch.testing.assert_close(temporal_conv(x, weight, None), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", IMPLEMENTATIONS["temporal_conv"])
def test_what_the_table_names_runs(
    measured: Callable[..., AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A 3-D convolution reads the clip where it lies, and leaves its result alike."""
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(2, 3, 5, 4, 16, generator=generator).movedim(-1, 2)
    weight, bias = torch.randn(8, 16, 3, 1, 1, generator=generator), torch.randn(8, generator=generator)
    read: list[torch.Tensor] = []
    conv3d = F.conv3d
    monkeypatch.setattr(F, "conv3d", lambda x, *more, **named: read.append(x) or conv3d(x, *more, **named))
    with measured("temporal_conv", "thirds", name):
        result = temporal_conv(clip, weight, bias)
    torch.testing.assert_close(result, temporal_conv_reference(clip, weight, bias), rtol=1e-5, atol=1e-5)
    assert chosen() == (("temporal_conv", name),)
    assert len(read) == (name == "conv3d")
    for x in read:
        assert x.data_ptr() == clip.data_ptr() and x.is_contiguous(memory_format=torch.channels_last_3d)
        assert x.stride()[-1] == 16, "by which torch knows the order of an axis of one"


def test_other_memory_is_nothing_for_a_3d_convolution(
    measured: Callable[..., AbstractContextManager[None]], caplog: pytest.LogCaptureFixture
) -> None:
    clip, weight = torch.randn(1, 2, 8, 3, 3), torch.randn(8, 8, 3, 1, 1)
    with measured("temporal_conv", "thirds", "conv3d"), caplog.at_level("INFO", logger="kernels.backend"):
        result = temporal_conv(clip, weight, None)
    torch.testing.assert_close(result, temporal_conv_reference(clip, weight, None), rtol=1e-5, atol=1e-5)
    expected = "kernel temporal_conv runs on torch: the memory is not channels-last"
    assert [record.getMessage() for record in caplog.records] == [expected]
    with selected({"temporal_conv": "conv3d"}), pytest.raises(ValueError, match="'conv3d', and the memory is not"):
        temporal_conv(clip, weight, None)
