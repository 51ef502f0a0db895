"""Group normalisation followed by SiLU.

    y = silu((x - mean_g) / sqrt(var_g + eps) * weight + bias)      (Wu and He 2018, equation 1)

mean and variance are taken over one group of channels and all positions of one sample.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def group_norm_silu_reference(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """The formula, written out. Shapes as in :func:`group_norm_silu`."""
    batch, channels = x.shape[:2]
    grouped = x.reshape(batch, groups, -1)
    mean = grouped.mean(-1, keepdim=True)
    variance = grouped.var(-1, unbiased=False, keepdim=True)
    normalised = ((grouped - mean) / torch.sqrt(variance + eps)).reshape(x.shape)
    affine = (1, channels) + (1,) * (x.dim() - 2)
    y = normalised * weight.view(affine) + bias.view(affine)
    return y * torch.sigmoid(y)


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """Normalise [B, C, *spatial] over ``groups`` channel groups, then SiLU. ``weight`` and ``bias`` are [C]."""
    return F.silu(F.group_norm(x, groups, weight, bias, eps))


def frames_group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """The same for a clip [B, T, C, H, W], with mean and variance over the frames too. ``weight`` and ``bias`` are [C].

    The result has the shape of ``x``. In memory its frames may lie behind its channels, as a temporal convolution on a
    CPU wants to read them.
    """
    return group_norm_silu(x.transpose(1, 2), weight, bias, groups, eps).transpose(1, 2)
