"""The learned mix of what a spatial and a temporal layer computed.

out = alpha * spatial + (1 - alpha) * temporal        (Blattmann et al. 2023, "Align your Latents", section 3.1)
"""

from __future__ import annotations

import torch
from torch import Tensor


def blend_reference(spatial: Tensor, temporal: Tensor, alpha: Tensor) -> Tensor:
    """The formula, written out. Shapes as in :func:`blend`."""
    return alpha * spatial + (1.0 - alpha) * temporal


def blend(spatial: Tensor, temporal: Tensor, alpha: Tensor) -> Tensor:
    """Mix two tensors; alpha 1 gives ``spatial`` to the bit, alpha 0 ``temporal``.

    Args:
        spatial: any shape and real dtype.
        temporal: the same shape.
        alpha: broadcastable to it, in [0, 1].

    Returns:
        The shape, dtype and memory layout of ``spatial``.
    """
    return torch.lerp(spatial, temporal.to(spatial.dtype), 1.0 - alpha.to(spatial.dtype))
