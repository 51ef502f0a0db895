"""Convolution over the frames of a clip, at each pixel on its own.

    y[b, t, :, p] = bias + sum_k weight[:, :, k] x[b, t + k - 1, :, p],    k = 0, 1, 2
                                    (Blattmann et al. 2023, "Align your Latents", section 3.1)

Frames outside the clip are zero.

The kernel is an implicit matrix product over channels-last memory [B, T * P, C]: the row of the same pixel one frame on
is P rows further, so a tap is an offset. What a residual block does around its convolutions is done on the way in
(normalisation and SiLU of x; the zeros outside the clip come after them) and on the way out:

    y = residual + gain * (conv(silu(scale * x + shift)) + bias + added)

and the statistics that the next normalisation needs are taken from y while it is in registers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import choose, may_run
from kernels.custom_op import custom_op
from kernels.language import jit, tl
from kernels.launch import Launch, Plan, Tile, cdiv, planned_for
from kernels.tiles import TileTable

TILES = TileTable(
    "temporal_conv",
    candidates={
        "all": (
            Tile({"BM": 128, "BN": 128, "BK": 64}, 8, 3),
            Tile({"BM": 128, "BN": 64, "BK": 64}, 8, 3),
            Tile({"BM": 64, "BN": 128, "BK": 64}, 4, 3),
        ),
        # 320 channels are five times 64; a tile of 128 would waste a sixth.
        "thirds": (
            Tile({"BM": 128, "BN": 64, "BK": 64}, 8, 3),
            Tile({"BM": 128, "BN": 128, "BK": 64}, 8, 3),
            Tile({"BM": 128, "BN": 64, "BK": 64}, 4, 3),
        ),
    },
    interpreted={name: Tile({"BM": 32, "BN": 32, "BK": 16}, 4) for name in ("all", "thirds")},
    exceptions={("thirds", 100): 2},  # the first one spills a register there
)


class Around(NamedTuple):
    """What is done to a convolution's input and output. None leaves it out."""

    scale: Tensor | None = None
    """[B, C] fp32, with ``shift``: the normalisation of the input."""
    shift: Tensor | None = None
    """[B, C] fp32."""
    added: Tensor | None = None
    """[B, T, O], the time embedding."""
    residual: Tensor | None = None
    """[B, T * P, O], contiguous."""
    gain: Tensor | None = None
    """[B, T] fp32, with ``residual``."""
    statistics: bool = False
    """Whether means and squared differences of the output are taken."""


def temporal_conv_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The formula, written out. Shapes as in :func:`temporal_conv`."""
    frames = x.shape[1]
    padded = F.pad(x, (0, 0, 0, 0, 0, 0, 1, 1))
    taps = weight.flatten(2).unbind(-1)
    terms = [torch.einsum("oc,btchw->btohw", tap, padded[:, k : k + frames]) for k, tap in enumerate(taps)]
    return terms[0] + terms[1] + terms[2] + (0.0 if bias is None else bias[:, None, None])


@jit
def temporal_conv_kernel(
    x_ptr: tl.tensor,  # [B, T * P, C], contiguous
    weight_ptr: tl.tensor,  # [3, C, O], contiguous
    bias_ptr: tl.tensor,  # [O] or None
    scale_ptr: tl.tensor,  # [B, C] fp32 or None
    shift_ptr: tl.tensor,  # [B, C] fp32 or None
    added_ptr: tl.tensor,  # [B, T, O], contiguous, or None
    residual_ptr: tl.tensor,  # [B, T * P, O], contiguous, or None
    gain_ptr: tl.tensor,  # [B, T] fp32 or None
    y_ptr: tl.tensor,  # [B, T * P, O], contiguous
    mean_ptr: tl.tensor,  # [B, tiles of rows, O] fp32 or None
    m2_ptr: tl.tensor,  # [B, tiles of rows, O] fp32 or None
    frames: tl.tensor,  # T
    pixels: tl.tensor,  # P
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741  # the published name of the axis
    FRAMES_FIRST: tl.constexpr,  # BM divides P
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    """BM rows by BN output channels, in one loop over the three taps and blocks of BK input channels."""
    batch = tl.program_id(1).to(tl.int64)
    blocks_n: tl.constexpr = (O + BN - 1) // BN
    blocks_k: tl.constexpr = (C + BK - 1) // BK
    rows = frames * pixels
    # Tiles of the same rows follow each other, and then those of the next frame: they read what is in the L2 cache.
    block = tl.program_id(0) // blocks_n
    if FRAMES_FIRST:
        block = block % frames * (pixels // BM) + block // frames
    row = block * BM + tl.arange(0, BM)
    column = tl.program_id(0) % blocks_n * BN + tl.arange(0, BN)
    x_base = x_ptr + batch * rows * C

    acc = tl.zeros([BM, BN], tl.float32)
    for i in range(0, 3 * blocks_k):
        tap = i // blocks_k
        channel = i % blocks_k * BK + tl.arange(0, BK)
        source = row + (tap - 1) * pixels
        inside = ((source >= 0) & (source < rows) & (row < rows))[:, None] & (channel < C)[None, :]
        x = tl.load(x_base + source[:, None] * C + channel[None, :], mask=inside, other=0.0)
        if scale_ptr is not None:
            scale = tl.load(scale_ptr + batch * C + channel, mask=channel < C, other=0.0)
            shift = tl.load(shift_ptr + batch * C + channel, mask=channel < C, other=0.0)
            activated = x.to(tl.float32) * scale[None, :] + shift[None, :]
            activated = activated * tl.sigmoid(activated)
            x = tl.where(inside, activated, 0.0).to(x.dtype)
        at = (tap * C + channel)[:, None] * O + column[None, :]
        weight = tl.load(weight_ptr + at, mask=(channel < C)[:, None] & (column < O)[None, :], other=0.0)
        acc = tl.dot(x, weight, acc, input_precision="ieee")

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + column, mask=column < O, other=0.0).to(tl.float32)[None, :]
    outside = (row < rows)[:, None] & (column < O)[None, :]
    frame = batch * frames + row // pixels
    if added_ptr is not None:
        acc += tl.load(added_ptr + frame[:, None] * O + column[None, :], mask=outside, other=0.0).to(tl.float32)
    to = (batch * rows + row)[:, None] * O + column[None, :]
    if residual_ptr is not None:
        gain = tl.load(gain_ptr + frame, mask=row < rows, other=0.0)
        acc = tl.load(residual_ptr + to, mask=outside, other=0.0).to(tl.float32) + gain[:, None] * acc
    y = acc.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + to, y, mask=outside)
    if mean_ptr is not None:
        mean, m2 = _statistics(y.to(tl.float32), row < rows, tl.minimum(BM, rows - block * BM))
        to_tile = (batch * tl.cdiv(rows, BM) + block) * O + column
        tl.store(mean_ptr + to_tile, mean, mask=column < O)
        tl.store(m2_ptr + to_tile, m2, mask=column < O)


@jit
def _statistics(y: tl.tensor, exists: tl.tensor, count: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Means and sums of squared differences of the columns of [BM, BN], over the rows that exist."""
    y = tl.where(exists[:, None], y, 0.0)
    mean = tl.sum(y, axis=0) / count.to(tl.float32)
    apart = tl.where(exists[:, None], y - mean[None, :], 0.0)
    return mean, tl.sum(apart * apart, axis=0)


class ConvPlan(NamedTuple):
    """The launch of one convolution, and the tensors that it writes."""

    launch: Launch
    y: Tensor
    mean: Tensor | None
    m2: Tensor | None
    chunk: int
    """Rows that one line of the statistics is of."""


def plan_conv(
    x: Tensor,  # [B, T * P, C], contiguous
    weight: Tensor,  # [O, C, 3, 1, 1]
    bias: Tensor | None,  # [O]
    frames: int,
    around: Around,
    architecture: int,
    table: TileTable = TILES,
) -> ConvPlan:
    """The launch of a convolution with what is around it, by tiles of a ``table`` with the candidates of ours."""
    batch, rows, channels = x.shape
    outputs = weight.shape[0]
    tile = table.tile(shape_class(outputs), architecture)
    block_m, pixels = tile.sizes["BM"], rows // frames
    tiles = cdiv(rows, block_m)
    y = x.new_empty(batch, rows, outputs)
    mean, m2 = (
        x.new_empty(batch, tiles, outputs, dtype=torch.float32) if around.statistics else None for _ in range(2)
    )
    arguments = {
        "x_ptr": x, "weight_ptr": taps_first(weight), "bias_ptr": bias, "scale_ptr": around.scale,
        "shift_ptr": around.shift, "added_ptr": around.added, "residual_ptr": around.residual, "gain_ptr": around.gain,
        "y_ptr": y, "mean_ptr": mean, "m2_ptr": m2, "frames": frames, "pixels": pixels, "C": channels, "O": outputs,
        "FRAMES_FIRST": pixels % block_m == 0,
    }  # fmt: skip
    grid = (tiles * cdiv(outputs, tile.sizes["BN"]), batch)
    return ConvPlan(Launch(temporal_conv_kernel, grid, arguments, tile), y, mean, m2, block_m)


def taps_first(weight: Tensor) -> Tensor:
    """[O, C, 3, 1, 1] -> [3, C, O], contiguous. Costs nothing where the weight lies so already."""
    return weight.flatten(2).permute(2, 1, 0).contiguous()


def shape_class(outputs: int) -> str:
    """Of the tiles for so many output channels."""
    return "all" if outputs % 128 == 0 else "thirds"


def launch_temporal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, frames: int) -> Tensor:
    """[B, T * P, C] -> [B, T * P, O] by the kernel."""
    plan = plan_conv(x, weight, bias, frames, Around(), planned_for(x))
    return Plan(plan.y, (plan.launch,)).run()


def torch_temporal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, frames: int) -> Tensor:
    """The same in torch's operators: a 2-D convolution, all pixels of a frame being one axis."""
    clip = x.unflatten(1, (frames, -1)).permute(0, 3, 1, 2)
    return F.conv2d(clip, weight.squeeze(-1), bias, padding=(1, 0)).permute(0, 2, 3, 1).flatten(1, 2)


def conv3d_temporal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, frames: int) -> Tensor:
    """The same as the published 3-D convolution, for which cuDNN has other kernels than for a 2-D one."""
    # The last axis has one pixel, and a stride by which torch knows the memory for channels-last.
    clip = x.unflatten(1, (frames, -1, 1)).permute(0, 4, 1, 2, 3)
    return F.conv3d(clip, weight, bias, padding=(1, 0, 0)).permute(0, 2, 3, 4, 1).flatten(1, 3)


def empty_temporal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, frames: int) -> Tensor:  # noqa: ARG001
    """Room for the result, contiguous."""
    return x.new_empty(*x.shape[:2], weight.shape[0])


_temporal_conv = custom_op("temporal_conv", launch_temporal_conv, torch_temporal_conv, empty_temporal_conv)


def temporal_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A (3, 1, 1) convolution with zero padding.

    Args:
        x: [B, T, C, H, W]. Read without a copy when in memory the frames lie behind the channels.
        weight: [O, C, 3, 1, 1], as the published 3-D convolutions hold it.
        bias: [O], or None for none.

    Returns:
        [B, T, O, H, W]; in memory its frames may lie behind its channels.
    """
    batch, frames, channels, height, width = x.shape
    if may_run(x):
        inputs, unfit = (x, weight, bias), unfit_clip(x, weight)
        implementation = choose(TILES, shape_class(weight.shape[0]), inputs, unfit, lambda _: unfit_memory(x))
        if implementation != "torch":
            run = _temporal_conv if implementation == "triton" else conv3d_temporal_conv
            y = run(x.movedim(2, -1).flatten(1, -2), weight, bias, frames)
            return y.view(batch, frames, height, width, -1).movedim(-1, 2)
    # All pixels of a frame as one axis: the CPU's 2-D convolution takes about two thirds of the time of its 3-D one.
    h = x.transpose(1, 2).reshape(batch, channels, frames, height * width)
    y = F.conv2d(h, weight.squeeze(-1), bias, padding=(1, 0))
    return y.view(batch, -1, frames, height, width).transpose(1, 2)


def unfit_clip(x: Tensor, weight: Tensor) -> str:
    """What keeps a clip [B, T, C, H, W] from the kernel; empty if nothing."""
    if x.shape[2] % 8 or weight.shape[0] % 8:
        return f"channels={x.shape[2]} in and {weight.shape[0]} out are not multiples of 8"
    if x[0].numel() >= 2**31 or x[0, :, 0].numel() * weight.shape[0] >= 2**31:
        return "one clip has 2^31 elements or more"
    return unfit_memory(x)


def unfit_memory(x: Tensor) -> str:
    """What keeps a clip [B, T, C, H, W] from being read as [B, T * P, C]; empty if nothing."""
    return "" if x.movedim(2, -1).is_contiguous() else "the memory is not channels-last"
