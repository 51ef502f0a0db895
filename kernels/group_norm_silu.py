"""Group normalisation followed by SiLU.

    y = silu((x - mean_g) / sqrt(var_g + eps) * weight + bias)      (Wu and He 2018, equation 1)

mean and variance are taken over one group of channels and all positions of one sample.

The kernels read channels-last memory. A first pass leaves the mean and the sum of squared differences of every channel
in every chunk of positions. Merging those is exact whatever the mean (Chan, Golub and LeVeque 1979, equation 2.1), and
is done in a fixed order, so that a sample has the same bits in every batch. A second pass applies what they come to, a
gain and an offset a channel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import may_run, takes_kernel
from kernels.custom_op import custom_op, like_first
from kernels.language import jit, tl
from kernels.launch import Launch, Plan, Tile, cdiv, next_power_of_2, planned_for
from kernels.tiles import TileTable

TILES = TileTable(
    "group_norm",
    candidates={
        "all": (
            Tile({"BR": 32, "BC": 64}, 4),
            Tile({"BR": 64, "BC": 64}, 8),
            Tile({"BR": 16, "BC": 128}, 4),
        ),
    },
    interpreted={"all": Tile({"BR": 16, "BC": 32}, 4)},
)
CHUNKS_AT_ONCE = 64
"""Chunks that one step of merging reads."""


def group_norm_silu_reference(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """The formula, written out. Shapes as in :func:`group_norm_silu`."""
    batch, channels = x.shape[:2]
    grouped = x.reshape(batch, groups, -1)
    mean = grouped.mean(-1, keepdim=True)
    variance = grouped.var(-1, unbiased=False, keepdim=True)
    normalised = ((grouped - mean) / torch.sqrt(variance + eps)).reshape(x.shape)
    affine = (1, channels) + (1,) * (x.dim() - 2)
    y = normalised * weight.view(affine) + bias.view(affine)
    return y * torch.sigmoid(y)


@jit
def channel_statistics_kernel(
    x_ptr: tl.tensor,  # [B, R, C], contiguous
    mean_ptr: tl.tensor,  # [B, chunks, C] fp32
    m2_ptr: tl.tensor,  # [B, chunks, C] fp32, the sum of squared differences from that mean
    rows: tl.tensor,
    C: tl.constexpr,
    CHUNK: tl.constexpr,  # rows of a chunk
    BR: tl.constexpr,
    BC: tl.constexpr,
) -> None:
    """BC channels of one chunk, BR rows at a time."""
    batch = tl.program_id(2).to(tl.int64)
    chunk = tl.program_id(1)
    channel = tl.program_id(0) * BC + tl.arange(0, BC)
    mean = tl.zeros([BC], tl.float32)
    m2 = tl.zeros([BC], tl.float32)
    for start in range(0, CHUNK, BR):
        first = chunk * CHUNK + start
        row = first + tl.arange(0, BR)[:, None]
        inside = (row < rows) & (channel < C)[None, :]
        at = (batch * rows + row) * C + channel[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        before = tl.minimum(start, rows - chunk * CHUNK).to(tl.float32)
        added = tl.maximum(tl.minimum(BR, rows - first), 0).to(tl.float32)
        tile_mean = tl.sum(x, axis=0) / tl.maximum(added, 1.0)
        apart = tl.where(row < rows, x - tile_mean[None, :], 0.0)
        share = added / tl.maximum(before + added, 1.0)
        delta = tile_mean - mean
        m2 += tl.sum(apart * apart, axis=0) + delta * delta * before * share
        mean += delta * share
    to = (batch * tl.num_programs(1) + chunk) * C + channel
    tl.store(mean_ptr + to, mean, mask=channel < C)
    tl.store(m2_ptr + to, m2, mask=channel < C)


@jit
def merge_statistics_kernel(
    mean_ptr: tl.tensor,  # [B, chunks, C] fp32
    m2_ptr: tl.tensor,  # [B, chunks, C] fp32
    weight_ptr: tl.tensor,  # [C]
    bias_ptr: tl.tensor,  # [C]
    gain_ptr: tl.tensor,  # [B, C] fp32
    offset_ptr: tl.tensor,  # [B, C] fp32
    rows: tl.tensor,
    chunks: tl.tensor,
    eps: tl.tensor,
    C: tl.constexpr,
    WIDTH: tl.constexpr,  # channels of a group
    PADDED: tl.constexpr,  # the power of two from WIDTH on
    CHUNK: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    """One group of one sample: y = gain x + offset normalises it."""
    batch = tl.program_id(1).to(tl.int64)
    within = tl.arange(0, PADDED)
    channel = tl.program_id(0) * WIDTH + within
    total = rows.to(tl.float32) * WIDTH
    mean = 0.0
    for start in range(0, chunks, BK):
        chunk = start + tl.arange(0, BK)[:, None]
        inside = (chunk < chunks) & (within < WIDTH)[None, :]
        count = tl.maximum(tl.minimum(rows - chunk * CHUNK, CHUNK), 0).to(tl.float32)
        means = tl.load(mean_ptr + (batch * chunks + chunk) * C + channel[None, :], mask=inside, other=0.0)
        mean += tl.sum(tl.sum(means * count, axis=1), axis=0) / total
    m2 = 0.0
    for start in range(0, chunks, BK):
        chunk = start + tl.arange(0, BK)[:, None]
        inside = (chunk < chunks) & (within < WIDTH)[None, :]
        count = tl.maximum(tl.minimum(rows - chunk * CHUNK, CHUNK), 0).to(tl.float32)
        at = (batch * chunks + chunk) * C + channel[None, :]
        apart = tl.load(mean_ptr + at, mask=inside, other=0.0) - mean
        squares = tl.load(m2_ptr + at, mask=inside, other=0.0) + tl.where(inside, apart * apart * count, 0.0)
        m2 += tl.sum(tl.sum(squares, axis=1), axis=0)
    weight = tl.load(weight_ptr + channel, mask=within < WIDTH, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=within < WIDTH, other=0.0).to(tl.float32)
    gain = weight * tl.math.rsqrt(m2 / total + eps)
    tl.store(gain_ptr + batch * C + channel, gain, mask=within < WIDTH)
    tl.store(offset_ptr + batch * C + channel, bias - mean * gain, mask=within < WIDTH)


@jit
def normalise_kernel(
    x_ptr: tl.tensor,  # [B, R, C], contiguous
    gain_ptr: tl.tensor,  # [B, C] fp32
    offset_ptr: tl.tensor,  # [B, C] fp32
    y_ptr: tl.tensor,  # [B, R, C], contiguous
    rows: tl.tensor,
    C: tl.constexpr,
    SILU: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
) -> None:
    """One tile [BR, BC] of one sample; the tiles of a row follow each other."""
    blocks: tl.constexpr = (C + BC - 1) // BC
    batch = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) // blocks * BR + tl.arange(0, BR)[:, None]
    channel = tl.program_id(0) % blocks * BC + tl.arange(0, BC)
    inside = (row < rows) & (channel < C)[None, :]
    at = (batch * rows + row) * C + channel[None, :]
    gain = tl.load(gain_ptr + batch * C + channel, mask=channel < C, other=0.0)
    offset = tl.load(offset_ptr + batch * C + channel, mask=channel < C, other=0.0)
    y = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) * gain[None, :] + offset[None, :]
    if SILU:
        y = y * tl.sigmoid(y)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


def plan_statistics(x: Tensor, architecture: int) -> tuple[Launch, Tensor, Tensor, int]:
    """Statistics of contiguous [B, R, C]: the launch, the means and M2s [B, chunks, C], and the rows of a chunk."""
    tile = TILES.tile("all", architecture)
    batch, rows, channels = x.shape
    # Enough chunks to fill a GPU at the small levels; few bytes of statistics at the large ones.
    chunk = 64 if rows <= 4096 else 512
    mean, m2 = (x.new_empty(batch, cdiv(rows, chunk), channels, dtype=torch.float32) for _ in range(2))
    arguments = {"x_ptr": x, "mean_ptr": mean, "m2_ptr": m2, "rows": rows, "C": channels, "CHUNK": chunk}
    grid = (cdiv(channels, tile.sizes["BC"]), mean.shape[1], batch)
    return Launch(channel_statistics_kernel, grid, arguments, tile), mean, m2, chunk


def plan_merge(
    mean: Tensor,  # [B, chunks, C]
    m2: Tensor,  # [B, chunks, C]
    rows: int,
    chunk: int,
    weight: Tensor,  # [C]
    bias: Tensor,  # [C]
    groups: int,
    eps: float,
) -> tuple[Launch, Tensor, Tensor]:
    """Statistics of all chunks into the gains and offsets [B, C] fp32 of the normalisation."""
    batch, chunks, channels = mean.shape
    gain, offset = (mean.new_empty(batch, channels) for _ in range(2))
    width = channels // groups
    arguments = {
        "mean_ptr": mean, "m2_ptr": m2, "weight_ptr": weight, "bias_ptr": bias, "gain_ptr": gain, "offset_ptr": offset,
        "rows": rows, "chunks": chunks, "eps": eps, "C": channels, "WIDTH": width, "PADDED": next_power_of_2(width),
        "CHUNK": chunk,
    }  # fmt: skip
    tile = Tile({"BK": max(1, min(CHUNKS_AT_ONCE, 4096 // next_power_of_2(width)))}, 4)
    return Launch(merge_statistics_kernel, (groups, batch), arguments, tile), gain, offset


def plan_group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool, architecture: int
) -> Plan:
    """The three launches for contiguous [B, R, C]."""
    tile = TILES.tile("all", architecture)
    statistics, mean, m2, chunk = plan_statistics(x, architecture)
    merge, gain, offset = plan_merge(mean, m2, x.shape[1], chunk, weight, bias, groups, eps)
    y = like_first(x)
    arguments = {
        "x_ptr": x, "gain_ptr": gain, "offset_ptr": offset, "y_ptr": y, "rows": x.shape[1], "C": x.shape[2],
        "SILU": silu,
    }  # fmt: skip
    grid = (cdiv(x.shape[1], tile.sizes["BR"]) * cdiv(x.shape[2], tile.sizes["BC"]), x.shape[0])
    return Plan(y, (statistics, merge, Launch(normalise_kernel, grid, arguments, tile)))


def launch_group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    """[B, R, C] -> [B, R, C] by the kernels."""
    return plan_group_norm(x, weight, bias, groups, eps, silu, planned_for(x)).run()


def torch_group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    """The same in torch's operators."""
    y = F.group_norm(x.transpose(1, 2), groups, weight, bias, eps).transpose(1, 2)
    return F.silu(y) if silu else y


_group_norm = custom_op("group_norm", launch_group_norm, torch_group_norm, like_first)


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """Normalise [B, C, *spatial] over ``groups`` channel groups, then SiLU. ``weight`` and ``bias`` are [C]."""
    if may_run(x) and takes_kernel(TILES, "all", (x, weight, bias), unfit_rows(x, 1)):
        return _on_rows(x, 1, weight, bias, groups, eps, silu=True)
    return F.silu(F.group_norm(x, groups, weight, bias, eps))


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """Normalise [B, C, *spatial] over ``groups`` channel groups. ``weight`` and ``bias`` are [C]."""
    if may_run(x) and takes_kernel(TILES, "all", (x, weight, bias), unfit_rows(x, 1)):
        return _on_rows(x, 1, weight, bias, groups, eps, silu=False)
    return F.group_norm(x, groups, weight, bias, eps)


def frames_group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """The same for a clip [B, T, C, H, W], with mean and variance over the frames too. ``weight`` and ``bias`` are [C].

    The result has the shape of ``x``. In memory its frames may lie behind its channels, as a temporal convolution on a
    CPU wants to read them.
    """
    if may_run(x) and takes_kernel(TILES, "all", (x, weight, bias), unfit_rows(x, 2)):
        return _on_rows(x, 2, weight, bias, groups, eps, silu=True)
    return F.silu(F.group_norm(x.transpose(1, 2), groups, weight, bias, eps)).transpose(1, 2)


def unfit_rows(x: Tensor, channel_axis: int) -> str:
    """What keeps ``x`` from being read as [B, R, C]; empty if nothing."""
    return "" if x.movedim(channel_axis, -1).is_contiguous() else "the memory is not channels-last"


def _on_rows(x: Tensor, channel_axis: int, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    last = x.movedim(channel_axis, -1)
    y = _group_norm(last.flatten(1, -2), weight, bias, groups, eps, silu)
    return y.view(last.shape).movedim(-1, channel_axis)
