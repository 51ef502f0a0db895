"""Adaptive layer normalisation: what a transformer block does with the scale, shift and gate of its conditioning.

    modulate(x) = (x - mean) / sqrt(var + eps) * (1 + scale) + shift
    gated_residual(x, y) = x + gate * y                              (Peebles and Xie 2023, section 3.2, adaLN-Zero)

mean and variance are taken over the channels of one token; scale, shift and gate are shared by the tokens of a sample.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import may_run, takes_kernel, unfit_channels
from kernels.custom_op import custom_op, like_first
from kernels.language import jit, tl
from kernels.launch import Launch, Plan, Tile, cdiv, next_power_of_2, planned_for
from kernels.tiles import TileTable

MODULATE_TILES = TileTable(
    "modulate",
    candidates={"all": (Tile({"BR": 2}, 8), Tile({"BR": 1}, 4), Tile({"BR": 4}, 8))},
    interpreted={"all": Tile({"BR": 8}, 4)},
)
GATE_TILES = TileTable(
    "gated_residual",
    candidates={"all": (Tile({"BR": 8, "BC": 256}, 4), Tile({"BR": 4, "BC": 512}, 4))},
    interpreted={"all": Tile({"BR": 8, "BC": 64}, 4)},
)
WIDEST = 4096
"""A token of more channels would not stay in registers between the statistics and their use."""


def modulate_reference(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """The formula, written out. Shapes as in :func:`modulate`."""
    mean = x.mean(-1, keepdim=True)
    variance = x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * (1.0 + scale) + shift


def gated_residual_reference(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """The formula, written out. Shapes as in :func:`gated_residual`."""
    return x + gate * y


@jit
def modulate_kernel(
    x_ptr: tl.tensor,  # [B, N, C]
    scale_ptr: tl.tensor,  # [B, 1, C]
    shift_ptr: tl.tensor,  # [B, 1, C]
    y_ptr: tl.tensor,  # [B, N, C], contiguous
    tokens: tl.tensor,
    x_batch: tl.tensor,  # strides; a token's is C in y
    x_token: tl.tensor,
    scale_batch: tl.tensor,
    shift_batch: tl.tensor,
    eps: tl.tensor,
    C: tl.constexpr,
    PADDED: tl.constexpr,  # the power of two from C on
    BR: tl.constexpr,
) -> None:
    """BR whole tokens of one sample: read once, normalised in registers, written once."""
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BR + tl.arange(0, BR)[:, None]
    channel = tl.arange(0, PADDED)[None, :]
    inside = (token < tokens) & (channel < C)
    x = tl.load(x_ptr + batch * x_batch + token * x_token + channel, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=1)[:, None] / C
    apart = tl.where(channel < C, x - mean, 0.0)
    normalised = apart * tl.math.rsqrt(tl.sum(apart * apart, axis=1)[:, None] / C + eps)
    scale = tl.load(scale_ptr + batch * scale_batch + channel, mask=channel < C, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + batch * shift_batch + channel, mask=channel < C, other=0.0).to(tl.float32)
    y = normalised * (1.0 + scale) + shift
    tl.store(y_ptr + (batch * tokens + token) * C + channel, y.to(y_ptr.dtype.element_ty), mask=inside)


@jit
def gated_residual_kernel(
    x_ptr: tl.tensor,  # [B, N, C]
    gate_ptr: tl.tensor,  # [B, 1, C]
    branch_ptr: tl.tensor,  # [B, N, C]
    y_ptr: tl.tensor,  # [B, N, C], contiguous
    tokens: tl.tensor,
    x_batch: tl.tensor,  # strides; a token's is C in y
    x_token: tl.tensor,
    gate_batch: tl.tensor,
    branch_batch: tl.tensor,
    branch_token: tl.tensor,
    C: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
) -> None:
    """One tile [BR, BC] of one sample; the tiles of a token follow each other."""
    blocks: tl.constexpr = (C + BC - 1) // BC
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) // blocks * BR + tl.arange(0, BR)[:, None]
    channel = tl.program_id(0) % blocks * BC + tl.arange(0, BC)[None, :]
    inside = (token < tokens) & (channel < C)
    x = tl.load(x_ptr + batch * x_batch + token * x_token + channel, mask=inside, other=0.0).to(tl.float32)
    at = branch_ptr + batch * branch_batch + token * branch_token + channel
    branch = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + batch * gate_batch + channel, mask=channel < C, other=0.0).to(tl.float32)
    y = x + gate * branch
    tl.store(y_ptr + (batch * tokens + token) * C + channel, y.to(y_ptr.dtype.element_ty), mask=inside)


def plan_modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float, architecture: int) -> Plan:
    """The launch for tensors with contiguous channels."""
    tile = MODULATE_TILES.tile("all", architecture)
    batch, tokens, channels = x.shape
    y = like_first(x)
    arguments = {
        "x_ptr": x, "scale_ptr": scale, "shift_ptr": shift, "y_ptr": y, "tokens": tokens,
        "x_batch": x.stride(0), "x_token": x.stride(1), "scale_batch": scale.stride(0), "shift_batch": shift.stride(0),
        "eps": eps, "C": channels, "PADDED": next_power_of_2(channels),
    }  # fmt: skip
    return Plan(y, (Launch(modulate_kernel, (cdiv(tokens, tile.sizes["BR"]), batch), arguments, tile),))


def plan_gated_residual(x: Tensor, gate: Tensor, y: Tensor, architecture: int) -> Plan:
    """The launch for tensors with contiguous channels."""
    tile = GATE_TILES.tile("all", architecture)
    batch, tokens, channels = x.shape
    result = like_first(x)
    arguments = {
        "x_ptr": x, "gate_ptr": gate, "branch_ptr": y, "y_ptr": result, "tokens": tokens,
        "x_batch": x.stride(0), "x_token": x.stride(1), "gate_batch": gate.stride(0),
        "branch_batch": y.stride(0), "branch_token": y.stride(1), "C": channels,
    }  # fmt: skip
    grid = (cdiv(tokens, tile.sizes["BR"]) * cdiv(channels, tile.sizes["BC"]), batch)
    return Plan(result, (Launch(gated_residual_kernel, grid, arguments, tile),))


def launch_modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """:func:`modulate` by the kernel."""
    return plan_modulate(x, scale, shift, eps, planned_for(x)).run()


def launch_gated_residual(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """:func:`gated_residual` by the kernel."""
    return plan_gated_residual(x, gate, y, planned_for(x)).run()


def torch_modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """:func:`modulate` in torch's operators."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), 1.0 + scale)


def torch_gated_residual(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """:func:`gated_residual` in torch's operators."""
    return torch.addcmul(x, gate, y)


_modulate = custom_op("modulate", launch_modulate, torch_modulate, like_first)
_gated_residual = custom_op("gated_residual", launch_gated_residual, torch_gated_residual, like_first)


def modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """Layer normalisation whose gain and bias come from the conditioning.

    Args:
        x: [B, N, C].
        scale: [B, 1, C], added to a gain of one.
        shift: [B, 1, C].
        eps: added to the variance.

    Returns:
        [B, N, C], dtype of the inputs.
    """
    if may_run(x) and takes_kernel(MODULATE_TILES, "all", (x, scale, shift), _unfit(x, scale, shift)):
        return _modulate(x, scale, shift, eps)
    return torch_modulate(x, scale, shift, eps)


def gated_residual(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """Add [B, N, C] ``y``, scaled by [B, 1, C] ``gate``, to [B, N, C] ``x``."""
    if may_run(x) and takes_kernel(GATE_TILES, "all", (x, gate, y), _unfit(x, gate, y)):
        return _gated_residual(x, gate, y)
    return torch_gated_residual(x, gate, y)


def _unfit(*tensors: Tensor) -> str:
    if tensors[0].shape[-1] > WIDEST:
        return f"a token has {tensors[0].shape[-1]} channels, at most {WIDEST} fit"
    return unfit_channels(*tensors)
