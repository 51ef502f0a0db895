"""The blocks that the UNet and the autoencoder are made of. Parameter names are those of the published checkpoints."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention import attention
from kernels.geglu import geglu
from kernels.group_norm_silu import group_norm, group_norm_silu


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions behind GroupNorm and SiLU, with a residual; the time embedding is added between them."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, eps: float, time_dim: int = 0) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, out_channels) if time_dim else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x [B, Cin, H, W], time [B, time_dim] after its SiLU -> [B, Cout, H, W]."""
        return self._after(self.conv1(_norm_silu(self.norm1, x)), x, time)

    def _after(self, h: Tensor, x: Tensor, time: Tensor | None) -> Tensor:
        """What follows the first convolution; ``x`` takes the residual path."""
        if self.time_emb_proj is not None:
            if time is None:
                raise ValueError("this block needs a time embedding. This is a bug.")
            h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.conv2(_norm_silu(self.norm2, h))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class ResampleBlock(ResnetBlock):
    """A residual block that halves or doubles the resolution on both of its paths (Dhariwal and Nichol 2021,
    section 3): the mean of four pixels, or the nearest one."""

    def __init__(self, channels: int, groups: int, eps: float, time_dim: int, up: bool) -> None:
        super().__init__(channels, channels, groups, eps, time_dim)
        self.up = up

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], H and W even to be halved, time [B, time_dim] after its SiLU -> [B, C, 2H, 2W] or
        [B, C, H/2, W/2]."""
        h = self.conv1(self._resampled(_norm_silu(self.norm1, x)))
        return self._after(h, self._resampled(x), time)

    def _resampled(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.avg_pool2d(x, 2)


class Attention(nn.Module):
    """Multi-head attention over tokens; self-attention when no context is given."""

    def __init__(self, channels: int, heads: int, context_dim: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context_dim or channels, channels, bias=bias)
        self.to_v = nn.Linear(context_dim or channels, channels, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x [B, M, C], context [B, N, context_dim] -> [B, M, C]."""
        source = x if context is None else context
        return self.to_out[0](attention(self.to_q(x), self.to_k(source), self.to_v(source), self.heads))


class PixelAttention(Attention):
    """Self-attention over the pixels of a feature map, as autoencoders have it and UNets without a context (Rombach
    et al. 2022, appendix E and G)."""

    def __init__(self, channels: int, groups: int, heads: int = 1, eps: float = 1e-6) -> None:
        super().__init__(channels, heads, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps)

    def forward(self, x: Tensor, context: object = None) -> Tensor:  # noqa: ARG002
        """[B, C, H, W] -> [B, C, H, W]. No context is read: it may be given for the sake of a common signature."""
        batch, channels, height, width = x.shape
        norm = self.group_norm
        tokens = group_norm(x, norm.weight, norm.bias, norm.num_groups, norm.eps).flatten(2).transpose(1, 2)
        out = super().forward(tokens)
        return x + out.transpose(1, 2).reshape(batch, channels, height, width)


class GEGLU(nn.Module):
    """Linear projection to twice the width, then the gated GELU."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., inner]."""
        return geglu(self.proj(x))


class FeedForward(nn.Module):
    """GEGLU feed-forward of four times the width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The published names count a dropout between the two layers.
        self.net = nn.ModuleList([GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each behind LayerNorm and with a residual.

    With ``only_cross_attention`` the first attention reads the context too.
    """

    def __init__(self, channels: int, heads: int, context_dim: int, only_cross_attention: bool = False) -> None:
        super().__init__()
        self.only_cross_attention = only_cross_attention
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads, context_dim if only_cross_attention else None)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor, frames: int = 1) -> Tensor:
        """x [B, T*M, C], context [B, N, context_dim] -> [B, T*M, C]. Each of the T frames attends to itself alone."""
        if self.only_cross_attention:
            x = x + cross_attention(self.attn1, self.norm1, x, context)
        else:
            apart = self.norm1(x).view(x.shape[0] * frames, -1, x.shape[2])
            x = x + self.attn1(apart).view_as(x)
        x = x + cross_attention(self.attn2, self.norm2, x, context)
        return x + self.ff(self.norm3(x))


def cross_attention(attention: Attention, norm: nn.LayerNorm, x: Tensor, context: Tensor) -> Tensor:
    """What cross-attention adds to a residual stream.

    Over one token the softmax is 1, so that attention is its value, whatever is asked: exact, and without the queries.
    A context whose length is symbolic, in an exported network, takes the general path, which serves one token too.

    Args:
        attention: queries from ``norm(x)``, keys and values from the context.
        norm: the LayerNorm in front of it.
        x: [B, M, C].
        context: [B, N, context_dim].

    Returns:
        [B, M, C], or [B, 1, C] for one token.
    """
    if isinstance(context.shape[1], int) and context.shape[1] == 1:
        return attention.to_out[0](attention.to_v(context))
    return attention(norm(x), context)


class TokenConv(nn.Conv2d):
    """A 1x1 convolution in the checkpoint, applied to tokens as the linear layer that it is."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return F.linear(x, self.weight.flatten(1), self.bias)


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map (Rombach et al. 2022, appendix E.2.1).

    The projections around them are 1x1 convolutions there, and linear layers from Stable Diffusion 2 on.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        depth: int,
        context_dim: int,
        groups: int,
        linear_projection: bool = True,
        only_cross_attention: bool = False,
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear_projection else TokenConv(channels)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(channels, heads, context_dim, only_cross_attention) for _ in range(depth)]
        )
        self.proj_out = nn.Linear(channels, channels) if linear_projection else TokenConv(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B, C, H, W], context [B, N, context_dim] -> [B, C, H, W]."""
        batch, channels, height, width = x.shape
        norm = self.norm
        h = group_norm(x, norm.weight, norm.bias, norm.num_groups, norm.eps)
        h = h.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context)
        h = self.proj_out(h)
        return x + h.view(batch, height, width, channels).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halve the resolution by a strided 3x3 convolution.

    The UNet pads by one on every side; the autoencoder (``asymmetric``) only on the right and bottom.
    """

    def __init__(self, channels: int, asymmetric: bool = False) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]; the UNet's rounds odd sizes up."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W], or [B, C, *size] where the downsampling had rounded an odd size up."""
        h = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if size is not None and h.shape[-2:] != size:
            h = h[..., : size[0], : size[1]]
        return self.conv(h)


class TimestepEmbedding(nn.Module):
    """Two linear layers with SiLU between them, over Fourier features; the inner one is ``hidden`` wide."""

    def __init__(self, in_features: int, out_features: int, hidden: int = 0) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_features, hidden or out_features)
        self.linear_2 = nn.Linear(hidden or out_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return self.linear_2(F.silu(self.linear_1(features)))


def fourier_features(values: Tensor, dim: int, sines_first: bool = False, freq_shift: int = 0) -> Tensor:
    """Sinusoidal features (Ho et al. 2020), in the published networks' order: cosines first.

    Args:
        values: [...], any real dtype.
        dim: number of features, even.
        sines_first: the order of Ho et al.
        freq_shift: with 1 the lowest frequency is 1/10000, as with Ho et al.; with 0 it is a little higher.

    Returns:
        [..., dim] fp32 (fp64 for fp64 values).
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    exponent = torch.arange(dim // 2, dtype=values.dtype, device=values.device)
    angles = values[..., None] * torch.exp(-math.log(10000.0) * exponent / (dim // 2 - freq_shift))
    halves = [torch.cos(angles), torch.sin(angles)]
    return torch.cat(halves[::-1] if sines_first else halves, dim=-1)


def _norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return group_norm_silu(x, norm.weight, norm.bias, norm.num_groups, norm.eps)
