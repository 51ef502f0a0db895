"""The residual block over frames against its formula, and against the published mix behind it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import tiles
from kernels.blend import blend
from kernels.temporal_resnet import (
    TILES,
    NormedConv,
    plan_temporal_resnet,
    temporal_resnet,
    temporal_resnet_reference,
)

BATCH, FRAMES, CHANNELS, GROUPS = 2, 4, 12, 3
TOLERANCES = [(torch.float64, 1e-11), (torch.float32, 2e-5)]
Inputs = tuple[Tensor, NormedConv, NormedConv, Tensor]


def draw(dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def weights() -> NormedConv:
        return NormedConv(randn(CHANNELS), randn(CHANNELS), randn(CHANNELS, CHANNELS, 3, 1, 1), randn(CHANNELS))

    return randn(BATCH, FRAMES, CHANNELS, 3, 5), weights(), weights(), randn(BATCH, FRAMES, CHANNELS)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("timed", [False, True])
def test_equals_the_reference(timed: bool, per_frame: bool, dtype: torch.dtype, tolerance: float) -> None:
    x, first, second, time = draw(dtype)
    gain = torch.linspace(0.1, 0.9, BATCH * FRAMES, dtype=dtype).view(BATCH, FRAMES) if per_frame else torch.full(
        (1,), 0.3, dtype=dtype
    )  # fmt: skip
    added = time if timed else None
    result = temporal_resnet(x, first, second, added, gain, GROUPS, 1e-5)
    expected = temporal_resnet_reference(x, first, second, added, gain, GROUPS, 1e-5)
    assert result.shape == x.shape and result.dtype == dtype
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)
    other = temporal_resnet(x, first, second, None if timed else time, gain, GROUPS, 1e-5)
    assert float((other - result).abs().max()) > 0.1


def test_the_gain_is_the_mix_behind_the_published_block() -> None:
    x, first, second, time = draw(torch.float64)
    alpha = torch.tensor([0.7], dtype=torch.float64)
    block = temporal_resnet(x, first, second, time, torch.ones(1, dtype=torch.float64), GROUPS, 1e-5)
    mixed = temporal_resnet(x, first, second, time, 1.0 - alpha, GROUPS, 1e-5)
    torch.testing.assert_close(mixed, blend(x, block, alpha), rtol=1e-12, atol=1e-12)
    assert float((mixed - blend(block, x, alpha)).abs().max()) > 0.1


def test_its_convolutions_have_the_tiles_that_were_measured_for_it() -> None:
    """Not those of convolutions alone, which have nothing around them."""
    x, rest = torch.empty(1, 2 * 6, 128, device="meta"), [torch.empty(128, device="meta")] * 2
    weights = [*rest, torch.empty(128, 128, 3, 1, 1, device="meta"), rest[0]] * 2
    table = {op: {"all": {"backend": "triton", "tile": i}} for op, i in (("temporal_resnet", 2), ("temporal_conv", 1))}
    with tiles.using({"sm_90": table}):
        launches = plan_temporal_resnet(x, weights, None, torch.empty(1, 2, device="meta"), 32, 1e-5, 90).launches
    assert [launch.tile for launch in launches[2::2]] == [TILES.candidates["all"][2]] * 2
