"""Root-mean-square normalisation.

    y_i = x_i / sqrt(mean(x^2) + eps) * weight_i        (Zhang and Sennrich 2019, equation 4)

The mean is taken over each run of D channels, D the length of ``weight``. With D the head dimension this is the QK-norm
of attention, in the layout that the projections leave.
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

TILES = TileTable(
    "rms_norm",
    candidates={"all": (Tile({"BR": 32}, 4), Tile({"BR": 16}, 4), Tile({"BR": 64}, 8))},
    interpreted={"all": Tile({"BR": 16}, 4)},
)
LONGEST = 256
"""Runs of more channels would not stay in registers, 32 of them at a time."""


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The formula, written out. Shapes as in :func:`rms_norm`."""
    runs = x.reshape(*x.shape[:-1], -1, len(weight))
    mean_square = runs.square().mean(-1, keepdim=True)
    return (runs / torch.sqrt(mean_square + eps) * weight).flatten(-2)


@jit
def rms_norm_kernel(
    x_ptr: tl.tensor,  # [rows, G * D]
    weight_ptr: tl.tensor,  # [D]
    y_ptr: tl.tensor,  # [rows, G * D]
    runs: tl.tensor,  # rows * G
    row_stride: tl.tensor,  # of x; that of y is G * D
    eps: tl.tensor,
    G: tl.constexpr,
    D: tl.constexpr,
    PADDED: tl.constexpr,  # the power of two from D on
    BR: tl.constexpr,
) -> None:
    """BR runs. Those of one row follow each other, so that programs read in the order of the memory."""
    run = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)[:, None]
    channel = tl.arange(0, PADDED)[None, :]
    inside = (run < runs) & (channel < D)
    x = tl.load(x_ptr + run // G * row_stride + run % G * D + channel, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + channel, mask=channel < D, other=0.0).to(tl.float32)
    y = x * tl.math.rsqrt(tl.sum(x * x, axis=1) / D + eps)[:, None] * weight
    tl.store(y_ptr + run * D + channel, y.to(y_ptr.dtype.element_ty), mask=inside)


def plan_rms_norm(x: Tensor, weight: Tensor, eps: float, architecture: int) -> Plan:
    """The launch for [rows, G * D] with contiguous channels."""
    tile = TILES.tile("all", architecture)
    y, length = like_first(x, weight, eps), weight.shape[0]
    groups = x.shape[1] // length
    arguments = {
        "x_ptr": x, "weight_ptr": weight, "y_ptr": y, "runs": x.shape[0] * groups, "row_stride": x.stride(0),
        "eps": eps, "G": groups, "D": length, "PADDED": next_power_of_2(length),
    }  # fmt: skip
    return Plan(y, (Launch(rms_norm_kernel, (cdiv(x.shape[0] * groups, tile.sizes["BR"]),), arguments, tile),))


def launch_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[rows, G * D] -> [rows, G * D] by the kernel."""
    return plan_rms_norm(x, weight, eps, planned_for(x)).run()


def torch_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same in torch's operators; any leading axes."""
    runs = x.reshape(*x.shape[:-1], -1, weight.shape[0])
    return F.rms_norm(runs, weight.shape, weight, eps).flatten(-2)


_rms_norm = custom_op("rms_norm", launch_rms_norm, torch_rms_norm, like_first)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise every run of D channels of ``x``.

    Args:
        x: [..., G * D]; the mean square is taken in fp32 for half precision.
        weight: [D].
        eps: added to the mean square.

    Returns:
        [..., G * D], dtype of ``x``.
    """
    if may_run(x) and takes_kernel(TILES, "all", (x, weight), _unfit(x, weight)):
        return _rms_norm(x.reshape(-1, x.shape[-1]), weight, eps).view(x.shape)
    return torch_rms_norm(x, weight, eps)


def _unfit(x: Tensor, weight: Tensor) -> str:
    if weight.shape[0] > LONGEST:
        return f"a run has {weight.shape[0]} channels, at most {LONGEST} fit"
    return unfit_channels(x)
