"""Root-mean-square normalisation.

    y_i = x_i / sqrt(mean(x^2) + eps) * weight_i        (Zhang and Sennrich 2019, equation 4)

The mean is taken over each run of D channels, D the length of ``weight``. With D the head dimension this is the QK-norm
of attention, in the layout that the projections leave.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The formula, written out. Shapes as in :func:`rms_norm`."""
    runs = x.reshape(*x.shape[:-1], -1, len(weight))
    mean_square = runs.square().mean(-1, keepdim=True)
    return (runs / torch.sqrt(mean_square + eps) * weight).flatten(-2)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise every run of D channels of ``x``.

    Args:
        x: [..., G * D]; the mean square is taken in fp32 for half precision.
        weight: [D].
        eps: added to the mean square.

    Returns:
        [..., G * D], dtype of ``x``.
    """
    runs = x.reshape(*x.shape[:-1], -1, weight.shape[0])
    return F.rms_norm(runs, weight.shape, weight, eps).flatten(-2)
