"""The learned mix of what a spatial and a temporal layer computed.

out = alpha * spatial + (1 - alpha) * temporal        (Blattmann et al. 2023, "Align your Latents", section 3.1)
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.backend import may_run, takes_kernel
from kernels.custom_op import custom_op
from kernels.language import jit, tl
from kernels.launch import Launch, Plan, Tile, cdiv, planned_for
from kernels.tiles import TileTable

TILES = TileTable(
    "blend",
    candidates={"all": (Tile({"BLOCK": 2048}, 4), Tile({"BLOCK": 1024}, 4), Tile({"BLOCK": 4096}, 8))},
    interpreted={"all": Tile({"BLOCK": 256}, 4)},
)


def blend_reference(spatial: Tensor, temporal: Tensor, alpha: Tensor) -> Tensor:
    """The formula, written out. Shapes as in :func:`blend`."""
    return alpha * spatial + (1.0 - alpha) * temporal


@jit
def blend_kernel(
    spatial_ptr: tl.tensor,  # [rows, elements], contiguous
    temporal_ptr: tl.tensor,  # [rows, elements], contiguous
    alpha_ptr: tl.tensor,  # [rows]
    y_ptr: tl.tensor,  # [rows, elements], contiguous
    elements: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """BLOCK elements of one row, all of one alpha."""
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    alpha = tl.load(alpha_ptr + row).to(tl.float32)
    spatial = tl.load(spatial_ptr + row * elements + at, mask=inside, other=0.0).to(tl.float32)
    temporal = tl.load(temporal_ptr + row * elements + at, mask=inside, other=0.0).to(tl.float32)
    y = alpha * spatial + (1.0 - alpha) * temporal
    tl.store(y_ptr + row * elements + at, y.to(y_ptr.dtype.element_ty), mask=inside)


def plan_blend(spatial: Tensor, temporal: Tensor, alpha: Tensor, architecture: int) -> Plan:
    """The launch for tensors that lie alike in memory, without gaps, and the axes that alpha spans in front."""
    tile = TILES.tile("all", architecture)
    y = torch.empty_like(spatial)
    rows, elements = alpha.numel(), spatial.numel() // alpha.numel()
    arguments = {"spatial_ptr": spatial, "temporal_ptr": temporal, "alpha_ptr": alpha, "y_ptr": y, "elements": elements}
    return Plan(y, (Launch(blend_kernel, (cdiv(elements, tile.sizes["BLOCK"]), rows), arguments, tile),))


def launch_blend(spatial: Tensor, temporal: Tensor, alpha: Tensor) -> Tensor:
    """:func:`blend` by the kernel."""
    return plan_blend(spatial, temporal, alpha, planned_for(spatial)).run()


def torch_blend(spatial: Tensor, temporal: Tensor, alpha: Tensor) -> Tensor:
    """:func:`blend` in torch's operators."""
    return torch.lerp(spatial, temporal.to(spatial.dtype), 1.0 - alpha.to(spatial.dtype))


def empty_blend(spatial: Tensor, temporal: Tensor, alpha: Tensor) -> Tensor:  # noqa: ARG001  # the operator's arguments
    """Room for the result, lying as ``spatial`` does."""
    return torch.empty_like(spatial)


_blend = custom_op("blend", launch_blend, torch_blend, empty_blend)


def blend(spatial: Tensor, temporal: Tensor, alpha: Tensor) -> Tensor:
    """Mix two tensors; alpha 1 gives ``spatial`` to the bit, alpha 0 ``temporal``.

    Args:
        spatial: any shape and real dtype.
        temporal: the same shape.
        alpha: broadcastable to it, in [0, 1].

    Returns:
        The shape, dtype and memory layout of ``spatial``.
    """
    if may_run(spatial) and takes_kernel(TILES, "all", (spatial, temporal, alpha), _unfit(spatial, temporal, alpha)):
        return _blend(spatial, temporal, alpha.contiguous())
    return torch_blend(spatial, temporal, alpha)


def _unfit(spatial: Tensor, temporal: Tensor, alpha: Tensor) -> str:
    """The kernel walks through the memory, whatever the axes are called; only alpha's must come first."""
    channels_last = spatial.dim() > 2 and spatial.movedim(-3 if spatial.dim() > 3 else 1, -1).is_contiguous()
    if spatial.stride() != temporal.stride() or not (spatial.is_contiguous() or channels_last):
        return "the two tensors lie differently in memory, or with gaps"
    if alpha.numel() == 1:
        return ""
    spanned = sum(size > 1 for size in alpha.shape)
    outermost = all(spatial.stride(i) == spatial[(0,) * (i + 1)].numel() for i in range(spanned))
    if alpha.shape != spatial.shape[:spanned] + (1,) * (spatial.dim() - spanned) or not outermost:
        return "alpha does not span the outermost axes of the memory"
    return ""
