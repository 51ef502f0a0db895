"""Guidance rescale (Lin et al. 2024, section 3.4): guided outputs as bright and as dark as the positive lane's.

It is a statistic of the row and not linear, so it comes before the solver step, which then has one lane of weight 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def guidance_rescale_reference(guided: Tensor, positive: Tensor, phi: Tensor) -> Tensor:
    """The formula over the whole batch. Shapes as in :func:`guidance_rescale`."""
    dims = list(range(1, guided.dim()))
    ratio = positive.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
    phi = phi.reshape(-1, *(1 for _ in dims))
    return phi * (guided * ratio) + (1.0 - phi) * guided


def mix_lanes(
    outputs: Tensor,  # [B, L, C, *spatial] or [B, L, T, C, *spatial], fp32 or fp64
    weights: Tensor,  # [B, L] or [B, L, T]
) -> Tensor:
    """F = sum_k w_k F_k, [B, C, *spatial] or [B, T, C, *spatial] in the dtype of ``outputs``.

    A row has the same bits in every batch.
    """
    assert outputs.dtype in (torch.float32, torch.float64), outputs.dtype
    assert weights.shape in (outputs.shape[:2], outputs.shape[:3]), (weights.shape, outputs.shape)
    weights = weights.to(outputs.dtype).reshape(*weights.shape, *(1,) * (outputs.dim() - weights.dim()))
    guided = weights[:, 0] * outputs[:, 0]
    for k in range(1, outputs.shape[1]):
        guided = guided + weights[:, k] * outputs[:, k]
    return guided


def guidance_rescale(
    guided: Tensor,  # [B, ...], fp32 or fp64
    positive: Tensor,  # [B, ...], the output of the positive lane
    phi: Tensor,  # [B], 0 leaves a row as it is
) -> Tensor:
    """Guided outputs with the standard deviation of the positive lane, mixed in by phi; of the shape of ``guided``.

        F' = phi F std(F_positive)/std(F) + (1 - phi) F        (Lin et al. 2024, equations 14 to 16)

    The deviation is over everything but the batch, in fp64 and of one row at a time: a reduction of the whole batch
    picks its order of summation by the batch size, and a row would get other bits.
    """
    assert guided.shape == positive.shape and phi.shape == guided.shape[:1], (guided.shape, positive.shape, phi.shape)
    ratios = [_deviation(wanted) / _deviation(row) for wanted, row in zip(positive, guided, strict=True)]
    phi = phi.double()
    # A factor of exactly 1 keeps the bits of a row that is left as it is, whatever its ratio.
    factors = torch.where(phi == 0.0, 1.0, phi * torch.stack(ratios) + (1.0 - phi))
    return guided * factors.to(guided.dtype).reshape(-1, *(1,) * (guided.dim() - 1))


def _deviation(row: Tensor) -> Tensor:
    return row.double().contiguous().std()
