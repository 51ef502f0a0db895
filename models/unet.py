"""The denoising UNet of latent diffusion and SDXL (Rombach et al. 2022, section 3.2; Podell et al. 2023, section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import (
    Downsample,
    ResnetBlock,
    SpatialTransformer,
    TimestepEmbedding,
    Upsample,
    fourier_features,
)
from models.spec.unet import UNetSpec


class UNet(nn.Module):
    """Predicts eps, v or whatever it was trained to, from a noisy latent, the time and the conditioning."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        channels = spec.block_out_channels
        time_dim = 4 * channels[0]
        self.conv_in = nn.Conv2d(spec.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], time_dim)
        self.add_embedding = TimestepEmbedding(spec.vector_dim, time_dim) if spec.vector_dim else None
        self.down_blocks = nn.ModuleList(_down_blocks(spec, time_dim))
        self.mid_block = MidBlock(spec, time_dim)
        self.up_blocks = nn.ModuleList(_up_blocks(spec, time_dim))
        self.conv_norm_out = nn.GroupNorm(spec.norm_num_groups, channels[0], spec.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], spec.out_channels, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        """One evaluation.

        Args:
            x: [B, in_channels, H, W], already scaled by c_in; H and W multiples of 2^(levels - 1).
            c_noise: [B], the time as the network was trained to see it (0..999 for discrete schedules).
            context: [B, N, context_dim], text tokens.
            vector: [B, vector_dim], pooled text and Fourier features of the sizes.

        Returns:
            [B, out_channels, H, W].
        """
        time = self._time(c_noise, vector, x.dtype)
        h = self.conv_in(x)
        skips = [h]
        for block in self.down_blocks:
            h = block(h, time, context, skips)
        h = self.mid_block(h, time, context)
        for block in self.up_blocks:
            h = block(h, time, context, skips)
        return self.conv_out(F.silu(self.conv_norm_out(h)))

    def _time(self, c_noise: Tensor, vector: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, time_dim], through the SiLU that every residual block would apply to it."""
        time = self.time_embedding(fourier_features(c_noise, self.spec.block_out_channels[0]).to(dtype))
        if self.add_embedding is not None:
            time = time + self.add_embedding(vector.to(dtype))
        return F.silu(time)


class DownBlock(nn.Module):
    """Residual blocks, each followed by a transformer where the level has attention, then a downsampling."""

    def __init__(self, resnets: list[ResnetBlock], attentions: list[SpatialTransformer], channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.downsamplers = nn.ModuleList([Downsample(channels)] if channels else [])

    def forward(self, h: Tensor, time: Tensor, context: Tensor, skips: list[Tensor]) -> Tensor:
        """Appends every output to ``skips`` for the way up."""
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, time)
            if self.attentions:
                h = self.attentions[i](h, context)
            skips.append(h)
        for downsample in self.downsamplers:
            h = downsample(h)
            skips.append(h)
        return h


class UpBlock(nn.Module):
    """Like :class:`DownBlock`, each residual block taking one skip beside its input, then an upsampling."""

    def __init__(self, resnets: list[ResnetBlock], attentions: list[SpatialTransformer], channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.upsamplers = nn.ModuleList([Upsample(channels)] if channels else [])

    def forward(self, h: Tensor, time: Tensor, context: Tensor, skips: list[Tensor]) -> Tensor:
        """Takes its skips from the end of ``skips``."""
        for i, resnet in enumerate(self.resnets):
            h = resnet(torch.cat([h, skips.pop()], dim=1), time)
            if self.attentions:
                h = self.attentions[i](h, context)
        for upsample in self.upsamplers:
            h = upsample(h)
        return h


class MidBlock(nn.Module):
    """Residual block, transformer, residual block at the lowest resolution."""

    def __init__(self, spec: UNetSpec, time_dim: int) -> None:
        super().__init__()
        width = spec.block_out_channels[-1]
        self.resnets = nn.ModuleList([_resnet(spec, width, width, time_dim) for _ in range(2)])
        self.attentions = nn.ModuleList(_transformers(spec, len(spec.block_out_channels) - 1, 1))

    def forward(self, h: Tensor, time: Tensor, context: Tensor) -> Tensor:
        h = self.resnets[0](h, time)
        for attention in self.attentions:
            h = attention(h, context)
        return self.resnets[1](h, time)


def _down_blocks(spec: UNetSpec, time_dim: int) -> list[DownBlock]:
    blocks, previous = [], spec.block_out_channels[0]
    for level, width in enumerate(spec.block_out_channels):
        inputs = [previous] + [width] * (spec.layers_per_block - 1)
        resnets = [_resnet(spec, channels, width, time_dim) for channels in inputs]
        last = level == len(spec.block_out_channels) - 1
        blocks.append(DownBlock(resnets, _transformers(spec, level, len(resnets)), 0 if last else width))
        previous = width
    return blocks


def _up_blocks(spec: UNetSpec, time_dim: int) -> list[UpBlock]:
    blocks, widths = [], spec.block_out_channels
    previous = widths[-1]
    for level in reversed(range(len(widths))):
        width = widths[level]
        # The skips of a level: its own residual blocks' outputs, then the input that came from the level above.
        skips = [width] * spec.layers_per_block + [widths[max(level - 1, 0)]]
        inputs = [previous] + [width] * spec.layers_per_block
        resnets = [_resnet(spec, a + b, width, time_dim) for a, b in zip(inputs, skips, strict=True)]
        blocks.append(UpBlock(resnets, _transformers(spec, level, len(resnets)), width if level else 0))
        previous = width
    return blocks


def _resnet(spec: UNetSpec, in_channels: int, out_channels: int, time_dim: int) -> ResnetBlock:
    return ResnetBlock(in_channels, out_channels, spec.norm_num_groups, spec.norm_eps, time_dim)


def _transformers(spec: UNetSpec, level: int, count: int) -> list[SpatialTransformer]:
    depth = spec.transformer_depth[level]
    if not depth:
        return []
    width, heads = spec.block_out_channels[level], spec.heads[level]
    return [SpatialTransformer(width, heads, depth, spec.context_dim, spec.norm_num_groups) for _ in range(count)]
