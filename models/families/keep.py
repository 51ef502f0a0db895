"""Inpainting: what a row keeps of a given picture, alone and in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Keep:
    """What stays of a given picture. After a line at the level (alpha, sigma)

    x <- m x + (1 - m) (alpha z + sigma eps)        (Lugmayr et al. 2022, equation 8, with one eps a row)
    """

    mask: Tensor
    """m, [1, h, w]: 1 where the row may paint, 0 where the picture stays."""
    latent: Tensor
    """z, [C, h, w], the picture encoded."""
    noise: Tensor
    """eps, [C, h, w], the noise that the row began with."""

    def blend(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """x at the level (alpha, sigma), with what stays of the picture put back."""
        return self.mask * x + (1.0 - self.mask) * (alpha * self.latent + sigma * self.noise)


def batched(
    keeps: Sequence[Keep | None], levels: Sequence[tuple[float, float]], x: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``mask``, ``kept`` and ``level`` of the solver step, like x [B, (T,) C, h, w]; None if no row keeps anything.

    A row that keeps nothing beside one that does has a mask of ones and zeros elsewhere.
    """
    if not any(keeps):
        return None, None, None
    mask = x.new_ones(len(keeps), *(1,) * (x.dim() - 3), *x.shape[-2:])
    kept = x.new_zeros(len(keeps), 2, *x.shape[1:])
    for i, keep in enumerate(keeps):
        if keep is not None:
            mask[i], kept[i, 0], kept[i, 1] = keep.mask, keep.latent, keep.noise
    return mask, kept, torch.tensor(levels, dtype=x.dtype).to(x.device)
