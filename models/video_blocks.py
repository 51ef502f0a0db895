"""The temporal layers that turn an image UNet into a video UNet (Blattmann et al. 2023, "Align your Latents", section
3.1, and "Stable Video Diffusion", appendix D). Parameter names are those of the published checkpoints.

A clip stays ``[B, T, C, H, W]``. Spatial layers see its frames as pictures by a view, temporal ones read it in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kernels.blend import blend
from kernels.group_norm_silu import group_norm
from kernels.temporal_attention import temporal_attention
from kernels.temporal_resnet import NormedConv, temporal_resnet
from models.blocks import (
    Attention,
    FeedForward,
    ResnetBlock,
    TimestepEmbedding,
    TransformerBlock,
    cross_attention,
    fourier_features,
)

GROUPS = 32
"""Groups of every GroupNorm in a published video network."""


class ClipContext(NamedTuple):
    """What the transformers of a video network are conditioned on."""

    tokens: Tensor
    """[B, N, context_dim], for all frames."""
    positions: Mapping[int, Tensor]
    """By channel count, the Fourier features [T, C] of the frame indices."""


def clip_context(tokens: Tensor, frames: int, widths: set[int]) -> ClipContext:
    """Tokens [B, N, D], and the frame indices' features for transformers of these widths, in the tokens' dtype."""
    index = torch.arange(frames, device=tokens.device, dtype=torch.promote_types(tokens.dtype, torch.float32))
    return ClipContext(tokens, {width: fourier_features(index, width).to(tokens.dtype) for width in sorted(widths)})


def per_frame(layer: Callable[..., Tensor], x: Tensor, *arguments: object) -> Tensor:
    """Apply a layer for pictures to [B, C, H, W], or to every frame of [B, T, C, H, W]."""
    if x.dim() == 4:
        return layer(x, *arguments)
    return layer(x.flatten(0, 1), *arguments).unflatten(0, x.shape[:2])


class Mixer(nn.Module):
    """Blends a spatial and a temporal result by one learned factor, kept as its logit."""

    def __init__(self) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([0.5]))

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        """Two tensors of one shape -> alpha of the first and 1 - alpha of the second."""
        return blend(spatial, temporal, torch.sigmoid(self.mix_factor))

    def temporal_share(self) -> Tensor:
        """1 - alpha, [1]."""
        return torch.sigmoid(-self.mix_factor)


class TemporalResnetBlock(nn.Module):
    """Two convolutions over three frames behind GroupNorm over the clip and SiLU, with a residual; the time embedding
    is added between them."""

    def __init__(self, channels: int, eps: float, time_dim: int = 0, groups: int = GROUPS) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps)
        self.conv1 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        self.time_emb_proj = nn.Linear(time_dim, channels) if time_dim else None
        self.norm2 = nn.GroupNorm(groups, channels, eps)
        self.conv2 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor, time: Tensor | None = None, share: Tensor | None = None) -> Tensor:
        """x [B, T, C, H, W], time [B, T, time_dim] after its SiLU -> [B, T, C, H, W]; with ``share`` [1] that share of
        it, mixed with ``x``."""
        embedding = None
        if self.time_emb_proj is not None:
            if time is None:
                raise ValueError("this block needs a time embedding. This is a bug.")
            embedding = self.time_emb_proj(time)
        share = x.new_ones(1) if share is None else share
        first, second = _normed_conv(self.norm1, self.conv1), _normed_conv(self.norm2, self.conv2)
        return temporal_resnet(x, first, second, embedding, share, self.norm1.num_groups, self.norm1.eps)


class VideoResnetBlock(nn.Module):
    """A residual block for every frame, then one over frames, mixed."""

    def __init__(self, in_channels: int, out_channels: int, eps: float, time_dim: int) -> None:
        super().__init__()
        self.spatial_res_block = ResnetBlock(in_channels, out_channels, GROUPS, eps, time_dim)
        self.temporal_res_block = TemporalResnetBlock(out_channels, eps, time_dim)
        self.time_mixer = Mixer()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, T, Cin, H, W], time [B, T, time_dim] after its SiLU -> [B, T, Cout, H, W]."""
        spatial = self.spatial_res_block(x.flatten(0, 1), time.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.temporal_res_block(spatial, time, self.time_mixer.temporal_share())


class TemporalAttention(Attention):
    """Self-attention over the frames, at each pixel on its own."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, T, L, C] -> [B, T, L, C]."""
        if context is not None:
            raise ValueError("attention over frames takes no context. This is a bug.")
        return self.to_out[0](temporal_attention(self.to_q(x), self.to_k(x), self.to_v(x), self.heads))


class TemporalTransformerBlock(nn.Module):
    """Feed-forward, self-attention over the frames, cross-attention and feed-forward, each behind LayerNorm and with a
    residual."""

    def __init__(self, channels: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(channels)
        self.ff_in = FeedForward(channels)
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = TemporalAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B, T, L, C], context [B, N, context_dim], the first frame's -> [B, T, L, C]."""
        shape = x.shape
        x = x + self.ff_in(self.norm_in(x))
        x = x + self.attn1(self.norm1(x))
        tokens = x.flatten(1, 2)
        tokens = tokens + cross_attention(self.attn2, self.norm2, tokens, context)
        return (tokens + self.ff(self.norm3(tokens))).view(shape)


class VideoTransformer(nn.Module):
    """Transformer blocks over the pixels of each frame, each followed by one over the frames of each pixel, mixed.

    The frame index joins the temporal blocks' input as an embedding of its own.
    """

    def __init__(self, channels: int, heads: int, depth: int, context_dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads, context_dim) for _ in range(depth)])
        self.temporal_transformer_blocks = nn.ModuleList(
            [TemporalTransformerBlock(channels, heads, context_dim) for _ in range(depth)]
        )
        self.time_pos_embed = TimestepEmbedding(channels, channels, hidden=4 * channels)
        self.time_mixer = Mixer()
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: ClipContext) -> Tensor:
        """[B, T, C, H, W] -> [B, T, C, H, W]."""
        batch, frames, channels, height, width = x.shape
        positions = self.time_pos_embed(context.positions[channels])[:, None]
        norm = self.norm
        pixels = group_norm(x.flatten(0, 1), norm.weight, norm.bias, norm.num_groups, norm.eps).permute(0, 2, 3, 1)
        h = self.proj_in(pixels.reshape(batch, frames * height * width, channels))
        for spatial, temporal in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            h = spatial(h, context.tokens, frames).view(batch, frames, height * width, channels)
            h = self.time_mixer(h, temporal(h + positions, context.tokens)).flatten(1, 2)
        h = self.proj_out(h)
        return x + h.view(batch, frames, height, width, channels).permute(0, 1, 4, 2, 3)


def _normed_conv(norm: nn.GroupNorm, conv: nn.Conv3d) -> NormedConv:
    assert conv.bias is not None
    return NormedConv(norm.weight, norm.bias, conv.weight, conv.bias)
