"""Optical flow by block matching: how far things move from one frame to the next. For measuring, not for training."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 11
"""Side of a block in pixels."""
STRIDE = 4
REACH = 6
"""Largest step that is found, pixels."""
TEXTURE = 0.03
"""Blocks whose standard deviation (pictures in [0, 1]) is less have nothing to hold on to, and are left out."""


def mean_speed(clip: Tensor) -> float:
    """Mean length of the step from frame to frame in pixels, over the textured blocks of a clip [T, 3, H, W] in
    [0, 1]; 0 where there are none."""
    lengths = [speeds[textured] for speeds, textured in (block_steps(a, b) for a, b in pairwise(clip))]
    found = torch.cat(lengths)
    return float(found.mean()) if len(found) else 0.0


def block_steps(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Length of each block's step between two frames [3, H, W], fp32 [N] in pixels, and which blocks have texture.

    A block goes where the sum of squared differences is least, to a part of a pixel by a parabola through the
    neighbours. A still block is 0 exactly: of equally good steps the shortest is taken.
    """
    variance = _block_means(before.square()) - _block_means(before).square()
    textured = (variance.amax(dim=0) > TEXTURE**2).flatten()
    height, width = before.shape[1:]
    side = 2 * REACH + 1
    padded = F.pad(after[None], (REACH,) * 4, mode="replicate")[0]
    shifted = padded.unfold(1, height, 1).unfold(2, width, 1).permute(1, 2, 0, 3, 4)  # [side, side, 3, H, W]
    costs = _block_means((shifted - before).square().mean(dim=2)).flatten(2)  # [side, side, N]
    axis = torch.arange(side) - REACH
    length = (axis[:, None] ** 2 + axis**2).sqrt()
    best = (costs + 1e-6 * length[..., None]).flatten(0, 1).argmin(dim=0)
    row, column = best // side, best % side
    step_y = row - REACH + _refined(costs, row, column, dim=0)
    step_x = column - REACH + _refined(costs, row, column, dim=1)
    return torch.hypot(step_x, step_y), textured


def _block_means(values: Tensor) -> Tensor:
    """[..., C, H, W] -> the mean of each block [..., C, rows, columns]."""
    return F.avg_pool2d(values, BLOCK, STRIDE)


def _refined(costs: Tensor, row: Tensor, column: Tensor, dim: int) -> Tensor:
    """Offset of the minimum from the best whole step along one axis, within half a pixel."""
    n = torch.arange(len(row))
    here = row if dim == 0 else column
    low, high = (here - 1).clamp(min=0), (here + 1).clamp(max=len(costs) - 1)
    if dim == 0:
        left, right = costs[low, column, n], costs[high, column, n]
    else:
        left, right = costs[row, low, n], costs[row, high, n]
    middle = costs[row, column, n]
    bend = left - 2.0 * middle + right
    inside = (low != here) & (high != here) & (middle > 1e-7) & (bend > 1e-9)
    return torch.where(inside, (0.5 * (left - right) / bend.clamp(min=1e-9)).clamp(-0.5, 0.5), 0.0)
