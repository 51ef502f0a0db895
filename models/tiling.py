"""Large pictures in tiles, so that memory does not grow with them: overlapping tiles, blended where they meet.

Tile borders change the result a little, so a picture that fits into one tile is never cut.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TILE = 1024
"""Pixels along one side of a tile, and so the largest picture that is coded whole."""
OVERLAP = 4
"""A tile shares one in this many of its pixels along a side with the next tile."""

Coder = Callable[[Tensor], Tensor]


def tiled_decode(decode: Coder, latents: Tensor, downscale: int, tile: int = TILE) -> Tensor:
    """Decode in tiles where the picture is larger than one.

    Args:
        decode: [..., h, w] -> [..., h * downscale, w * downscale]; leading axes are its own affair.
        latents: [..., h, w].
        downscale: pixels per latent along one side.
        tile: pixels along one side of a tile, a multiple of ``4 * downscale``.

    Returns:
        [..., h * downscale, w * downscale]; exactly ``decode(latents)`` where both sides fit into a tile.

    Raises:
        ValueError: ``tile`` is not such a multiple.
    """
    _check(tile, downscale)
    return _in_tiles(decode, latents, tile // downscale, tile)


def tiled_encode(encode: Coder, pictures: Tensor, downscale: int, tile: int = TILE) -> Tensor:
    """Encode in tiles where the picture is larger than one; ``encode`` must not draw noise.

    Args:
        encode: [..., H, W] -> [..., H / downscale, W / downscale].
        pictures: [..., H, W], multiples of ``downscale``.
        downscale: pixels per latent along one side.
        tile: pixels along one side of a tile, a multiple of ``4 * downscale``.

    Returns:
        [..., H / downscale, W / downscale]; exactly ``encode(pictures)`` where both sides fit into a tile.

    Raises:
        ValueError: ``tile`` is not such a multiple.
    """
    _check(tile, downscale)
    return _in_tiles(encode, pictures, tile, tile // downscale)


def _check(tile: int, downscale: int) -> None:
    if tile <= 0 or tile % (OVERLAP * downscale):
        raise ValueError(f"tile is {tile} pixels, expected a multiple of {OVERLAP * downscale}")


def _in_tiles(code: Coder, x: Tensor, tile_in: int, tile_out: int) -> Tensor:
    """``code`` over tiles of ``tile_in`` cells, which come out as ``tile_out``."""
    height, width = x.shape[-2:]
    if height <= tile_in and width <= tile_in:
        return code(x)
    step, keep = tile_in - tile_in // OVERLAP, tile_out - tile_out // OVERLAP
    rows: list[Tensor] = []
    above: list[Tensor] = []
    for top in range(0, height, step):
        row: list[Tensor] = []
        for column, left in enumerate(range(0, width, step)):
            tile = code(x[..., top : top + tile_in, left : left + tile_in])
            if above:
                tile = _blend(above[column], tile, tile_out - keep, dim=-2)
            if row:
                tile = _blend(row[-1], tile, tile_out - keep, dim=-1)
            row.append(tile)
        rows.append(torch.cat([tile[..., :keep, :keep] for tile in row], dim=-1))
        above = row
    return torch.cat(rows, dim=-2)


def _blend(before: Tensor, after: Tensor, overlap: int, dim: int) -> Tensor:
    """``after`` with its first cells faded in from the last cells of the tile ``before`` it."""
    extent = min(before.shape[dim], after.shape[dim], overlap)
    weight = torch.arange(extent, dtype=after.dtype, device=after.device) / extent
    if dim == -2:
        weight = weight[:, None]
    old, new = before.narrow(dim, before.shape[dim] - extent, extent), after.narrow(dim, 0, extent)
    rest = after.narrow(dim, extent, after.shape[dim] - extent)
    return torch.cat([old * (1.0 - weight) + new * weight, rest], dim=dim)
