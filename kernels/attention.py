"""Scaled dot-product attention.

    out = softmax(q k^T / sqrt(d)) v        (Vaswani et al. 2017, equation 1), per head

The head dimension is the last factor of the channel axis, so projections feed it without a transpose in memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_reference(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool = False) -> Tensor:
    """The formula, written out. Shapes as in :func:`attention`; accumulates in the inputs' dtype."""
    q, k, v = (_split_heads(t, heads) for t in (query, key, value))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return _merge_heads(torch.softmax(scores, dim=-1) @ v)


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Multi-head attention.

    Args:
        query: [B, M, heads * D].
        key: [B, N, heads * D].
        value: [B, N, heads * D].
        heads: number of heads; must divide the channel axis.
        causal: whether query i sees the keys 0 .. i alone (then M = N).

    Returns:
        [B, M, heads * D], dtype of the inputs.
    """
    q, k, v = (_split_heads(t, heads) for t in (query, key, value))
    return _merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=causal))


def _split_heads(x: Tensor, heads: int) -> Tensor:
    batch, length, channels = x.shape
    return x.view(batch, length, heads, channels // heads).transpose(1, 2)


def _merge_heads(x: Tensor) -> Tensor:
    batch, heads, length, head_dim = x.shape
    return x.transpose(1, 2).reshape(batch, length, heads * head_dim)
