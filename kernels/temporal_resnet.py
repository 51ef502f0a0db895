"""A residual block over the frames of a clip, with the mix that follows it.

    h = conv1(silu(norm1(x))) + added
    y = x + gain * conv2(silu(norm2(h)))        (Blattmann et al. 2023, "Align your Latents", section 3.1)

The published block returns r = x + conv2(...), and the mix behind it is alpha x + (1 - alpha) r. That is
x + gain (r - x) with gain = 1 - alpha: the same with one reading of x less. Norms are over all frames and pixels of a
clip.

On a GPU this is five launches over channels-last memory: statistics of x, the two convolutions, which normalise their
input, add and mix on the way out and take the statistics that the second one needs, and the merging of the statistics.
Only h and y are written; op by op it would be every line of the formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.backend import may_run, takes_kernel
from kernels.custom_op import custom_op, like_first
from kernels.group_norm_silu import (
    frames_group_norm_silu,
    group_norm_silu_reference,
    plan_merge,
    plan_statistics,
    torch_group_norm,
)
from kernels.launch import Plan, planned_for
from kernels.temporal_conv import TILES as CONV_TILES
from kernels.temporal_conv import (
    Around,
    plan_conv,
    shape_class,
    temporal_conv,
    temporal_conv_reference,
    torch_temporal_conv,
    unfit_clip,
)
from kernels.tiles import TileTable

TILES = TileTable("temporal_resnet", CONV_TILES.candidates, CONV_TILES.interpreted, CONV_TILES.exceptions)


class NormedConv(NamedTuple):
    """The weights of GroupNorm and of the convolution behind it."""

    norm_weight: Tensor
    """[C]"""
    norm_bias: Tensor
    """[C]"""
    weight: Tensor
    """[C, C, 3, 1, 1]"""
    bias: Tensor
    """[C]"""


def temporal_resnet_reference(
    x: Tensor,
    first: NormedConv,
    second: NormedConv,
    added: Tensor | None,
    gain: Tensor,
    groups: int,
    eps: float,
) -> Tensor:
    """The formula, from the references of its parts. Shapes as in :func:`temporal_resnet`."""
    h = _normed_reference(x, first, groups, eps)
    if added is not None:
        h = h + added[..., None, None]
    return x + _per_frame(gain) * _normed_reference(h, second, groups, eps)


def plan_temporal_resnet(
    x: Tensor,  # [B, T * P, C], contiguous
    weights: list[Tensor],  # of the first and of the second NormedConv
    added: Tensor | None,  # [B, T, C]
    gain: Tensor,  # [B, T] fp32
    groups: int,
    eps: float,
    architecture: int,
) -> Plan:
    """The five launches."""
    first, second = NormedConv(*weights[:4]), NormedConv(*weights[4:])
    rows, frames = x.shape[1], gain.shape[1]
    statistics, mean, m2, chunk = plan_statistics(x, architecture)
    merge, scale, shift = plan_merge(mean, m2, rows, chunk, first.norm_weight, first.norm_bias, groups, eps)
    around = Around(scale, shift, added=added, statistics=True)
    conv = plan_conv(x, first.weight, first.bias, frames, around, architecture, TILES)
    assert conv.mean is not None and conv.m2 is not None
    again, scale, shift = plan_merge(
        conv.mean, conv.m2, rows, conv.chunk, second.norm_weight, second.norm_bias, groups, eps
    )
    around = Around(scale, shift, residual=x, gain=gain)
    last = plan_conv(conv.y, second.weight, second.bias, frames, around, architecture, TILES)
    return Plan(last.y, (statistics, merge, conv.launch, again, last.launch))


def launch_temporal_resnet(
    x: Tensor, weights: list[Tensor], added: Tensor | None, gain: Tensor, groups: int, eps: float
) -> Tensor:
    """[B, T * P, C] -> [B, T * P, C] by the kernels."""
    return plan_temporal_resnet(x, weights, added, gain, groups, eps, planned_for(x)).run()


def torch_temporal_resnet(
    x: Tensor,
    weights: list[Tensor],
    added: Tensor | None,
    gain: Tensor,
    groups: int,
    eps: float,
    conv: Callable[..., Tensor] = torch_temporal_conv,
) -> Tensor:
    """The same in torch's operators, with one of torch's ways to convolve."""
    first, second, frames = NormedConv(*weights[:4]), NormedConv(*weights[4:]), gain.shape[1]
    h = torch_group_norm(x, first.norm_weight, first.norm_bias, groups, eps, True)
    h = conv(h, first.weight, first.bias, frames).unflatten(1, (frames, -1))
    if added is not None:
        h = h + added[:, :, None]
    h = torch_group_norm(h.flatten(1, 2), second.norm_weight, second.norm_bias, groups, eps, True)
    h = conv(h, second.weight, second.bias, frames).unflatten(1, (frames, -1))
    share: Tensor = gain.to(x.dtype)[..., None, None] * h
    return x + share.flatten(1, 2)


_temporal_resnet = custom_op("temporal_resnet", launch_temporal_resnet, torch_temporal_resnet, like_first)


def temporal_resnet(
    x: Tensor,
    first: NormedConv,
    second: NormedConv,
    added: Tensor | None,
    gain: Tensor,
    groups: int,
    eps: float,
) -> Tensor:
    """The block and the mix behind it.

    Args:
        x: [B, T, C, H, W].
        first: of norm1 and conv1.
        second: of norm2 and conv2.
        added: [B, T, C], the projected time embedding, or None.
        gain: [1], or [B, T] for one a frame: the temporal result's share of the mix; 1 gives the block alone.
        groups: of both norms.
        eps: added to both variances.

    Returns:
        [B, T, C, H, W], dtype of ``x``.
    """
    if may_run(x):
        inputs = (x, *first, *second, added, gain)
        if takes_kernel(TILES, shape_class(x.shape[2]), inputs, unfit_clip(x, first.weight)):
            last = x.movedim(2, -1)
            shares = gain.to(torch.float32).expand(x.shape[:2]).contiguous()
            embedding = None if added is None else added.contiguous()
            y = _temporal_resnet(last.flatten(1, -2), [*first, *second], embedding, shares, groups, eps)
            return y.view(last.shape).movedim(-1, 2)
    h = _normed(x, first, groups, eps)
    if added is not None:
        h = h + added[..., None, None]
    return x + _per_frame(gain).to(x.dtype) * _normed(h, second, groups, eps)


def _normed(x: Tensor, weights: NormedConv, groups: int, eps: float) -> Tensor:
    h = frames_group_norm_silu(x, weights.norm_weight, weights.norm_bias, groups, eps)
    return temporal_conv(h, weights.weight, weights.bias)


def _normed_reference(x: Tensor, weights: NormedConv, groups: int, eps: float) -> Tensor:
    h = group_norm_silu_reference(x.transpose(1, 2), weights.norm_weight, weights.norm_bias, groups, eps)
    return temporal_conv_reference(h.transpose(1, 2), weights.weight, weights.bias)


def _per_frame(gain: Tensor) -> Tensor:
    """[1] or [B, T], to multiply [B, T, C, H, W]."""
    return gain[..., None, None, None] if gain.dim() == 2 else gain
