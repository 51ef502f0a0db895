"""Self-attention over the frames of a clip, at each pixel and head on its own.

    out[b, :, l] = softmax(q[b, :, l] k[b, :, l]^T / sqrt(d)) v[b, :, l]
                                    (Blattmann et al. 2023, "Align your Latents", section 3.1)

Every pixel has its own heads, and [B, T, L, heads * D] is read where it lies. A clip has too few frames to fill a tile
of the tensor cores, so a tile holds several pixels, and scores between different pixels are masked: the arithmetic that
this wastes is free, since reading q, k and v once is all the time there is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.attention import torch_attention, unfit_heads
from kernels.backend import may_run, takes_kernel
from kernels.custom_op import custom_op, like_first
from kernels.language import jit, tl
from kernels.launch import Launch, Plan, Tile, cdiv, next_power_of_2, planned_for
from kernels.tiles import TileTable

TILES = TileTable(
    "temporal_attention",
    candidates={
        # Rows of a tile: pixels times frames, padded to a power of two.
        "narrow": (Tile({"ROWS": 64}, 4), Tile({"ROWS": 128}, 8), Tile({"ROWS": 32}, 4)),
        "wide": (Tile({"ROWS": 64}, 8), Tile({"ROWS": 64}, 4), Tile({"ROWS": 32}, 4)),
    },
    interpreted={"narrow": Tile({"ROWS": 64}, 4), "wide": Tile({"ROWS": 32}, 4)},
)
LONGEST = 32
"""Frames that fit into every tile."""


def temporal_attention_reference(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """The formula, written out. Shapes as in :func:`temporal_attention`; accumulates in the inputs' dtype."""
    q, k, v = (t.unflatten(-1, (heads, -1)) for t in (query, key, value))
    scores = torch.einsum("btlhd,bslhd->blhts", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("blhts,bslhd->btlhd", torch.softmax(scores, dim=-1), v).reshape(query.shape)


@jit
def temporal_attention_kernel(
    q_ptr: tl.tensor,  # [B, T, L, heads * D]; channels contiguous, as for k and v
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    o_ptr: tl.tensor,  # [B, T, L, heads * D], contiguous
    frames: tl.tensor,  # T
    pixels: tl.tensor,  # L
    q_batch: tl.tensor,  # strides
    q_frame: tl.tensor,
    q_pixel: tl.tensor,
    k_batch: tl.tensor,
    k_frame: tl.tensor,
    k_pixel: tl.tensor,
    v_batch: tl.tensor,
    v_frame: tl.tensor,
    v_pixel: tl.tensor,
    scale: tl.tensor,  # log2(e) / sqrt(D)
    HEADS: tl.constexpr,
    D: tl.constexpr,
    PADDED: tl.constexpr,  # the power of two from D on
    FRAMES: tl.constexpr,  # the power of two from T on
    ROWS: tl.constexpr,
) -> None:
    """One head of ROWS / FRAMES pixels. Row r of a tile is frame r % FRAMES of its pixel r // FRAMES."""
    head = tl.program_id(0) % HEADS
    batch = tl.program_id(1).to(tl.int64)
    row = tl.arange(0, ROWS)
    pixel = (tl.program_id(0) // HEADS).to(tl.int64) * (ROWS // FRAMES) + row // FRAMES
    frame = row % FRAMES
    channel = head * D + tl.arange(0, PADDED)[None, :]
    exists = (frame < frames) & (pixel < pixels)
    inside = exists[:, None] & (tl.arange(0, PADDED) < D)[None, :]

    q_at = (batch * q_batch + frame * q_frame + pixel * q_pixel)[:, None] + channel
    k_at = (batch * k_batch + frame * k_frame + pixel * k_pixel)[:, None] + channel
    v_at = (batch * v_batch + frame * v_frame + pixel * v_pixel)[:, None] + channel
    q = tl.load(q_ptr + q_at, mask=inside, other=0.0)
    k = tl.load(k_ptr + k_at, mask=inside, other=0.0)
    v = tl.load(v_ptr + v_at, mask=inside, other=0.0)

    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    # A row of padding still sees its own pixel's frames, so that no row is empty.
    seen = (row[:, None] // FRAMES == row[None, :] // FRAMES) & (frame < frames)[None, :]
    scores = tl.where(seen, scores, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
    out = tl.dot(weights.to(v.dtype), v, input_precision="ieee") / tl.sum(weights, axis=1)[:, None]
    o_at = (((batch * frames + frame) * pixels + pixel) * (HEADS * D))[:, None] + channel
    tl.store(o_ptr + o_at, out.to(o_ptr.dtype.element_ty), mask=inside)


def plan_temporal_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, architecture: int) -> Plan:
    """The launch for tensors with contiguous channels and any other strides."""
    batch, frames, pixels, channels = query.shape
    head_dim = channels // heads
    tile, padded = TILES.tile(shape_class(query, heads), architecture), next_power_of_2(frames)
    out = like_first(query)
    strides = {
        f"{name}_{axis}": tensor.stride(i)
        for name, tensor in (("q", query), ("k", key), ("v", value))
        for i, axis in enumerate(("batch", "frame", "pixel"))
    }
    arguments = {
        "q_ptr": query, "k_ptr": key, "v_ptr": value, "o_ptr": out, "frames": frames, "pixels": pixels, **strides,
        "scale": 1.4426950408889634 / head_dim**0.5, "HEADS": heads, "D": head_dim,
        "PADDED": max(16, next_power_of_2(head_dim)), "FRAMES": padded,
    }  # fmt: skip
    grid = (heads * cdiv(pixels, tile.sizes["ROWS"] // padded), batch)
    return Plan(out, (Launch(temporal_attention_kernel, grid, arguments, tile),))


def launch_temporal_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """:func:`temporal_attention` by the kernel."""
    return plan_temporal_attention(query, key, value, heads, planned_for(query)).run()


def torch_temporal_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """:func:`temporal_attention` in torch's operators: attention over T tokens with ``L * heads`` heads."""
    pixels = query.shape[2]
    return torch_attention(query.flatten(2), key.flatten(2), value.flatten(2), pixels * heads, False).view_as(query)


_temporal_attention = custom_op("temporal_attention", launch_temporal_attention, torch_temporal_attention, like_first)


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
    if may_run(query):
        inputs = (query, key, value)
        unfit = unfit_heads(inputs, heads)
        if query.shape[1] > LONGEST:
            unfit = f"the clip has {query.shape[1]} frames, at most {LONGEST} fit"
        if takes_kernel(TILES, shape_class(query, heads), inputs, unfit):
            return _temporal_attention(query, key, value, heads)
    return torch_temporal_attention(query, key, value, heads)


def shape_class(query: Tensor, heads: int) -> str:
    """Of the tiles for queries [..., heads * D]."""
    return "narrow" if query.shape[-1] <= 64 * heads else "wide"
