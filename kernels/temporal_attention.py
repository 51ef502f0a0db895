"""Self-attention over the frames of a clip, at each pixel and head on its own.

    out[b, :, l] = softmax(q[b, :, l] k[b, :, l]^T / sqrt(d)) v[b, :, l]
                                    (Blattmann et al. 2023, "Align your Latents", section 3.1)

Every pixel has its own heads. So this is attention over T tokens with ``L * heads`` heads, and [B, T, L, heads * D] is
read where it lies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.attention import attention


def temporal_attention_reference(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """The formula, written out. Shapes as in :func:`temporal_attention`; accumulates in the inputs' dtype."""
    q, k, v = (t.unflatten(-1, (heads, -1)) for t in (query, key, value))
    scores = torch.einsum("btlhd,bslhd->blhts", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("blhts,bslhd->btlhd", torch.softmax(scores, dim=-1), v).reshape(query.shape)


def temporal_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention over frames without a mask.

    Args:
        query: [B, T, L, heads * D]; L counts the pixels.
        key: [B, T, L, heads * D].
        value: [B, T, L, heads * D].
        heads: number of heads; must divide the channel axis.

    Returns:
        [B, T, L, heads * D], dtype of the inputs.
    """
    return attention(query.flatten(2), key.flatten(2), value.flatten(2), query.shape[2] * heads).view_as(query)
