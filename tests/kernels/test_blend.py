"""The learned mix against the formula, written out."""

from __future__ import annotations

import pytest
import torch

from kernels.blend import blend, blend_reference

TOLERANCES = [(torch.float64, 1e-12), (torch.float32, 1e-6)]
SHAPES = [((3,), (1,)), ((2, 3, 4, 5, 2), (1,)), ((2, 3, 4, 5, 2), (2, 3, 1, 1, 1)), ((2, 7, 4), ())]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize(("shape", "alpha_shape"), SHAPES)
def test_equals_the_reference(
    shape: tuple[int, ...], alpha_shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    spatial, temporal = torch.randn(2, *shape, generator=generator, dtype=dtype)
    alpha = torch.rand(alpha_shape, generator=generator, dtype=dtype)
    result, expected = blend(spatial, temporal, alpha), blend_reference(spatial, temporal, alpha)
    assert result.dtype == dtype
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)
    assert (result - blend_reference(temporal, spatial, alpha)).abs().max() > 0.01


def test_the_ends_are_exact() -> None:
    spatial, temporal = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(blend(spatial, temporal, torch.tensor([1.0])), spatial)
    assert torch.equal(blend(spatial, temporal, torch.tensor([0.0])), temporal)


def test_the_result_has_the_dtype_and_layout_of_the_spatial_part() -> None:
    """Under autocast the parts and the factor may differ in dtype; a temporal part may lie channels first in memory."""
    spatial = torch.ones(2, 3, 4, 5, 6, dtype=torch.bfloat16)
    temporal = torch.full((2, 4, 3, 5, 6), 3.0).transpose(1, 2)
    result = blend(spatial, temporal, torch.tensor([0.75]))
    assert result.dtype == torch.bfloat16 and result.stride() == spatial.stride()
    assert result.unique().tolist() == [1.5]
