"""Gated GELU.

geglu([a, g]) = a * gelu(g)        (Shazeer 2020, "GLU Variants Improve Transformer", equation 6)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import may_run, takes_kernel, unfit_channels
from kernels.custom_op import custom_op
from kernels.language import jit, tl
from kernels.launch import Launch, Plan, Tile, cdiv, planned_for
from kernels.tiles import TileTable

TILES = TileTable(
    "geglu",
    candidates={
        "all": (Tile({"BR": 8, "BC": 256}, 4), Tile({"BR": 4, "BC": 512}, 4), Tile({"BR": 16, "BC": 256}, 8)),
    },
    interpreted={"all": Tile({"BR": 16, "BC": 64}, 4)},
)


def geglu_reference(x: Tensor) -> Tensor:
    """The formula with the exact (erf) GELU, written out. [..., 2C] -> [..., C]."""
    a, gate = x.chunk(2, dim=-1)
    return a * 0.5 * gate * (1.0 + torch.erf(gate / 2.0**0.5))


@jit
def geglu_kernel(
    x_ptr: tl.tensor,  # [rows, 2C]
    y_ptr: tl.tensor,  # [rows, C]
    rows: tl.tensor,
    row_stride: tl.tensor,  # of x; that of y is C
    C: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
) -> None:
    """One tile [BR, BC] of y; the tiles of a row follow each other."""
    blocks: tl.constexpr = (C + BC - 1) // BC
    row = (tl.program_id(0) // blocks).to(tl.int64) * BR + tl.arange(0, BR)[:, None]
    column = tl.program_id(0) % blocks * BC + tl.arange(0, BC)[None, :]
    inside = (row < rows) & (column < C)
    a = tl.load(x_ptr + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + row * row_stride + C + column, mask=inside, other=0.0).to(tl.float32)
    y = a * 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(y_ptr + row * C + column, y.to(y_ptr.dtype.element_ty), mask=inside)


def plan_geglu(x: Tensor, architecture: int) -> Plan:
    """The launch for [rows, 2C] with C contiguous in memory."""
    tile = TILES.tile("all", architecture)
    rows, channels = x.shape[0], x.shape[1] // 2
    y = empty_geglu(x)
    grid = (cdiv(channels, tile.sizes["BC"]) * cdiv(rows, tile.sizes["BR"]),)
    arguments = {"x_ptr": x, "y_ptr": y, "rows": rows, "row_stride": x.stride(0), "C": channels}
    return Plan(y, (Launch(geglu_kernel, grid, arguments, tile),))


def launch_geglu(x: Tensor) -> Tensor:
    """[rows, 2C] -> [rows, C] by the kernel."""
    return plan_geglu(x, planned_for(x)).run()


def torch_geglu(x: Tensor) -> Tensor:
    """The same in torch's operators; any leading axes."""
    a, gate = x.chunk(2, dim=-1)
    return a * F.gelu(gate)


def empty_geglu(x: Tensor) -> Tensor:
    """Room for the result, contiguous."""
    return x.new_empty(x.shape[0], x.shape[1] // 2)


_geglu = custom_op("geglu", launch_geglu, torch_geglu, empty_geglu)


def geglu(x: Tensor) -> Tensor:
    """[..., 2C] -> [..., C]: the first half scaled by the exact GELU of the second."""
    if may_run(x) and takes_kernel(TILES, "all", (x,), unfit_channels(x)):
        return _geglu(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
    return torch_geglu(x)
