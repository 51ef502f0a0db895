"""Guidance rescale against its reference and the published function, and a row's bits in every batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from kernels.guidance_rescale import guidance_rescale, guidance_rescale_reference


def guided_pair(rows: int, dtype: torch.dtype, latent: Sequence[int] = (4, 8, 8)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    guided, positive = torch.randn(2, rows, *latent, generator=generator, dtype=torch.float64)
    return (2.5 * guided).to(dtype), positive.to(dtype)


@pytest.mark.parametrize("latent", [(4, 8, 8), (3, 4, 5, 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_rescale_equals_the_reference_and_the_published_function(
    dtype: torch.dtype, tolerance: float, latent: tuple[int, ...]
) -> None:
    guided, positive = guided_pair(3, dtype, latent)
    phi = torch.tensor([0.0, 0.7, 1.0], dtype=torch.float64)
    result = guidance_rescale(guided, positive, phi)
    reference = guidance_rescale_reference(guided.double(), positive.double(), phi)
    assert result.dtype == dtype
    assert (result - reference).abs().max() / reference.abs().max() < tolerance
    for row, share in enumerate(phi.tolist()):
        published: Any = rescale_noise_cfg(guided[row : row + 1], positive[row : row + 1], share)
        assert (result[row] - published[0]).abs().max() / reference.abs().max() < 2 * tolerance
        other: Any = rescale_noise_cfg(guided[row : row + 1], positive[row : row + 1], share + 0.1)
        assert (result[row] - other[0]).abs().max() / reference.abs().max() > 1e-2
    assert float(result[2].std()) == pytest.approx(float(positive[2].std()), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 7, 16])
def test_rescale_gives_a_row_the_same_bits_in_every_batch(rows: int) -> None:
    guided, positive = guided_pair(16, torch.float32)
    phi = torch.linspace(0.0, 1.0, 16)
    alone = torch.cat([guidance_rescale(guided[i : i + 1], positive[i : i + 1], phi[i : i + 1]) for i in range(rows)])
    together = guidance_rescale(guided[:rows], positive[:rows], phi[:rows])
    assert torch.equal(alone.view(torch.int32), together.view(torch.int32))
    assert torch.equal(together[0].view(torch.int32), guided[0].view(torch.int32))  # phi = 0
