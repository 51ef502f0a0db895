"""The blocks that the MMDiT is made of. Parameter names are those of the published checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.adaln import gated_residual, modulate
from kernels.attention import attention
from kernels.rms_norm import rms_norm

EPS = 1e-6
"""Of the norms of queries and keys."""


class JointBlock(nn.Module):
    """One MMDiT block (Esser et al. 2024, figure 2b): picture and text have weights of their own and meet in one
    attention."""

    def __init__(
        self, width: int, heads: int, qk_norm: bool = False, dual_attention: bool = False, last: bool = False
    ) -> None:
        """``last``: nothing reads the text behind this block, so its half ends at the attention."""
        super().__init__()
        self.norm1 = AdaLayerNorm(width, 9 if dual_attention else 6)
        self.norm1_context = AdaLayerNorm(width, 2 if last else 6)
        self.attn = JointAttention(width, heads, qk_norm, last)
        self.attn2 = SelfAttention(width, heads, qk_norm) if dual_attention else None
        self.ff = FeedForward(width)
        self.ff_context = None if last else FeedForward(width)

    def forward(self, x: Tensor, context: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, M, C], context [B, N, C], time [B, C] after its SiLU -> the next x and context; the last block leaves
        the context as it is."""
        shift, scale, gate, ff_shift, ff_scale, ff_gate, *dual = self.norm1(time)
        if self.ff_context is None:
            context_scale, context_shift = self.norm1_context(time)
        else:
            context_shift, context_scale, context_gate, *context_ff = self.norm1_context(time)
        attended, context_attended = self.attn(
            modulate(x, scale, shift), modulate(context, context_scale, context_shift)
        )
        after = gated_residual(x, gate, attended)
        if self.attn2 is not None:
            # Both attentions read the tokens as they enter the block.
            dual_shift, dual_scale, dual_gate = dual
            after = gated_residual(after, dual_gate, self.attn2(modulate(x, dual_scale, dual_shift)))
        x = gated_residual(after, ff_gate, self.ff(modulate(after, ff_scale, ff_shift)))
        if self.ff_context is not None:
            context = gated_residual(context, context_gate, context_attended)
            ff_shift, ff_scale, ff_gate = context_ff
            context = gated_residual(context, ff_gate, self.ff_context(modulate(context, ff_scale, ff_shift)))
        return x, context


class AdaLayerNorm(nn.Module):
    """The shifts, scales and gates of one stream, from the conditioning."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        """time [B, C] after its SiLU -> ``parts`` tensors [B, 1, C]."""
        return self.linear(time).unsqueeze(1).chunk(self.parts, dim=-1)


class SelfAttention(nn.Module):
    """Multi-head attention of the picture to itself, with an RMS norm of queries and keys per head where asked for."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = (_head_norm(width // heads, qk_norm) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """[B, M, C] -> [B, M, C]."""
        query, key = _normed(self.to_q(x), self.norm_q), _normed(self.to_k(x), self.norm_k)
        return self.to_out[0](attention(query, key, self.to_v(x), self.heads))


class JointAttention(nn.Module):
    """Multi-head attention over the tokens of picture and text together, each projected by weights of its own."""

    def __init__(self, width: int, heads: int, qk_norm: bool, last: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = (_head_norm(width // heads, qk_norm) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width) for _ in range(3))
        self.norm_added_q, self.norm_added_k = (_head_norm(width // heads, qk_norm) for _ in range(2))
        self.to_add_out = None if last else nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, M, C], context [B, N, C] -> [B, M, C], [B, N, C]; the last block leaves the text as it came."""
        query, key = _normed(self.to_q(x), self.norm_q), _normed(self.to_k(x), self.norm_k)
        key = torch.cat([key, _normed(self.add_k_proj(context), self.norm_added_k)], dim=1)
        value = torch.cat([self.to_v(x), self.add_v_proj(context)], dim=1)
        if self.to_add_out is None:
            # The published forward asks the text's queries here too, and drops the answers.
            return self.to_out[0](attention(query, key, value, self.heads)), context
        query = torch.cat([query, _normed(self.add_q_proj(context), self.norm_added_q)], dim=1)
        attended, context = attention(query, key, value, self.heads).split([x.shape[1], context.shape[1]], dim=1)
        return self.to_out[0](attended), self.to_add_out(context)


class GELU(nn.Module):
    """Linear projection, then the tanh approximation of the GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., inner]."""
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """GELU feed-forward of four times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The published names count a dropout between the two layers.
        self.net = nn.ModuleList([GELU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return self.net[2](self.net[0](x))


def _head_norm(head_dim: int, wanted: bool) -> nn.RMSNorm | None:
    return nn.RMSNorm(head_dim, EPS) if wanted else None


def _normed(x: Tensor, norm: nn.RMSNorm | None) -> Tensor:
    return x if norm is None else rms_norm(x, norm.weight, EPS)
