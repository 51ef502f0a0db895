"""The way down, the middle and the way up of the denoising UNet, and how a spec becomes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.blocks import Downsample, PixelAttention, ResampleBlock, ResnetBlock, SpatialTransformer, Upsample
from models.spec.unet import UNetSpec
from models.video_blocks import ClipContext, VideoResnetBlock, VideoTransformer, per_frame

Resnet = ResnetBlock | VideoResnetBlock
Transformer = SpatialTransformer | VideoTransformer | PixelAttention
Context = Tensor | ClipContext
"""What transformers attend to: [B, N, context_dim], or that and the frames' positions in a video network. Attention
over pixels alone does not read it."""


class DownBlock(nn.Module):
    """Residual blocks, each followed by a transformer where the level has attention, then a downsampling."""

    def __init__(
        self,
        resnets: Sequence[Resnet],
        attentions: Sequence[Transformer],
        downsamplers: Sequence[Downsample | ResampleBlock],
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.downsamplers = nn.ModuleList(downsamplers)

    def forward(self, h: Tensor, time: Tensor, context: Context, skips: list[Tensor]) -> Tensor:
        """Appends every output to ``skips`` for the way up."""
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, time)
            if self.attentions:
                h = self.attentions[i](h, context)
            skips.append(h)
        for downsample in self.downsamplers:
            h = downsample(h, time) if isinstance(downsample, ResampleBlock) else per_frame(downsample, h)
            skips.append(h)
        return h


class UpBlock(nn.Module):
    """Like :class:`DownBlock`, each residual block taking one skip beside its input, then an upsampling."""

    def __init__(
        self,
        resnets: Sequence[Resnet],
        attentions: Sequence[Transformer],
        upsamplers: Sequence[Upsample | ResampleBlock],
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.upsamplers = nn.ModuleList(upsamplers)

    def forward(self, h: Tensor, time: Tensor, context: Context, skips: list[Tensor]) -> Tensor:
        """Takes its skips from the end of ``skips``; upsamples to the size of the next one."""
        for i, resnet in enumerate(self.resnets):
            h = resnet(_behind(h, skips.pop()), time)
            if self.attentions:
                h = self.attentions[i](h, context)
        for upsample in self.upsamplers:
            resampling = isinstance(upsample, ResampleBlock)
            h = upsample(h, time) if resampling else per_frame(upsample, h, skips[-1].shape[-2:])
        return h


class MidBlock(nn.Module):
    """Residual block, transformer, residual block at the lowest resolution."""

    def __init__(self, resnets: Sequence[Resnet], attentions: Sequence[Transformer]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)

    def forward(self, h: Tensor, time: Tensor, context: Context) -> Tensor:
        h = self.resnets[0](h, time)
        for attention in self.attentions:
            h = attention(h, context)
        return self.resnets[1](h, time)


def _behind(h: Tensor, skip: Tensor) -> Tensor:
    """Both, channels behind channels. Of five axes torch.cat would not keep a channels-last order of memory."""
    if h.dim() == 4:
        return torch.cat([h, skip], dim=1)
    return torch.cat([h.flatten(0, 1), skip.flatten(0, 1)], dim=1).unflatten(0, h.shape[:2])


def down_blocks(spec: UNetSpec, time_dim: int) -> list[DownBlock]:
    """The blocks of the way down, the highest resolution first."""
    blocks, previous = [], spec.block_out_channels[0]
    for level, width in enumerate(spec.block_out_channels):
        inputs = [previous] + [width] * (spec.layers_per_block - 1)
        resnets = [_resnet(spec, channels, width, spec.down_eps(level), time_dim) for channels in inputs]
        last = level == len(spec.block_out_channels) - 1
        samplers = [] if last else [_resample(spec, width, time_dim, up=False) or Downsample(width)]
        blocks.append(DownBlock(resnets, _transformers(spec, level, len(resnets)), samplers))
        previous = width
    return blocks


def mid_block(spec: UNetSpec, time_dim: int) -> MidBlock:
    """The block between the two ways."""
    last = len(spec.block_out_channels) - 1
    width = spec.block_out_channels[last]
    resnets = [_resnet(spec, width, width, spec.norm_eps, time_dim) for _ in range(2)]
    return MidBlock(resnets, [_transformer(spec, last, spec.mid_depth, only_cross_attention=False)])


def up_blocks(spec: UNetSpec, time_dim: int) -> list[UpBlock]:
    """The blocks of the way up, the lowest resolution first."""
    blocks, widths = [], spec.block_out_channels
    previous = widths[-1]
    for level in reversed(range(len(widths))):
        width = widths[level]
        # The skips of a level: its own residual blocks' outputs, then the input that came from the level above.
        skips = [width] * spec.layers_per_block + [widths[max(level - 1, 0)]]
        inputs = [previous] + [width] * spec.layers_per_block
        resnets = [_resnet(spec, a + b, width, spec.up_eps, time_dim) for a, b in zip(inputs, skips, strict=True)]
        samplers = [_resample(spec, width, time_dim, up=True) or Upsample(width)] if level else []
        blocks.append(UpBlock(resnets, _transformers(spec, level, len(resnets)), samplers))
        previous = width
    return blocks


def _resnet(spec: UNetSpec, in_channels: int, out_channels: int, eps: float, time_dim: int) -> Resnet:
    if spec.temporal:
        return VideoResnetBlock(in_channels, out_channels, eps, time_dim)
    return ResnetBlock(in_channels, out_channels, spec.norm_num_groups, eps, time_dim)


def _resample(spec: UNetSpec, channels: int, time_dim: int, up: bool) -> ResampleBlock | None:
    """What changes the resolution, where that is a residual block."""
    groups, eps = spec.norm_num_groups, spec.norm_eps
    return ResampleBlock(channels, groups, eps, time_dim, up) if spec.resnet_resampling else None


def _transformers(spec: UNetSpec, level: int, count: int) -> list[Transformer]:
    depth = spec.transformer_depth[level]
    only_cross = bool(spec.only_cross_attention) and spec.only_cross_attention[level]
    return [_transformer(spec, level, depth, only_cross) for _ in range(count if depth else 0)]


def _transformer(spec: UNetSpec, level: int, depth: int, only_cross_attention: bool) -> Transformer:
    width, heads = spec.block_out_channels[level], spec.heads[level]
    if not spec.context_dim:
        return PixelAttention(width, spec.norm_num_groups, heads, spec.norm_eps)
    if spec.temporal:
        return VideoTransformer(width, heads, depth, spec.context_dim)
    return SpatialTransformer(
        width, heads, depth, spec.context_dim, spec.norm_num_groups, spec.linear_projection, only_cross_attention
    )
