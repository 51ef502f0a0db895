"""Adaptive layer normalisation: what a transformer block does with the scale, shift and gate of its conditioning.

    modulate(x) = (x - mean) / sqrt(var + eps) * (1 + scale) + shift
    gated_residual(x, y) = x + gate * y                              (Peebles and Xie 2023, section 3.2, adaLN-Zero)

mean and variance are taken over the channels of one token; scale, shift and gate are shared by the tokens of a sample.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def modulate_reference(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """The formula, written out. Shapes as in :func:`modulate`."""
    mean = x.mean(-1, keepdim=True)
    variance = x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * (1.0 + scale) + shift


def modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """Layer normalisation whose gain and bias come from the conditioning.

    Args:
        x: [B, N, C].
        scale: [B, 1, C], added to a gain of one.
        shift: [B, 1, C].
        eps: added to the variance.

    Returns:
        [B, N, C], dtype of the inputs.
    """
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), 1.0 + scale)


def gated_residual_reference(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """The formula, written out. Shapes as in :func:`gated_residual`."""
    return x + gate * y


def gated_residual(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """Add [B, N, C] ``y``, scaled by [B, 1, C] ``gate``, to [B, N, C] ``x``."""
    return torch.addcmul(x, gate, y)
