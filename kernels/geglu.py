"""Gated GELU.

geglu([a, g]) = a * gelu(g)        (Shazeer 2020, "GLU Variants Improve Transformer", equation 6)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def geglu_reference(x: Tensor) -> Tensor:
    """The formula with the exact (erf) GELU, written out. [..., 2C] -> [..., C]."""
    a, gate = x.chunk(2, dim=-1)
    return a * 0.5 * gate * (1.0 + torch.erf(gate / 2.0**0.5))


def geglu(x: Tensor) -> Tensor:
    """[..., 2C] -> [..., C]: the first half scaled by the exact GELU of the second."""
    a, gate = x.chunk(2, dim=-1)
    return a * F.gelu(gate)
