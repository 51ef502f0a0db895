"""What a picture of a scene shows, read from its pixels alone: background, place, tint and number of things.

Plain arithmetic that has learnt nothing, so it cannot share a model's mistakes. How often it is right about scenes that
`scenes.draw` drew says how far to trust it, and stands beside every figure that it gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from models.training.scenes import COLOURS, PLACES, TINTS, Thing, corner

Pictures = NDArray[np.uint8]
GROUNDS = {"white": (255, 255, 255), **COLOURS}
NOTHING = -1
"""What is answered for a picture that shows no thing."""
BORDER = 2  # pixels; things stand on the border too, but fill less than half of it
CONTRAST = 30  # levels in one channel by which a pixel must differ from the background to belong to a thing
SPECK = 0.02  # part of the picture below which a connected patch is no thing


def ground_colours(pictures: Pictures) -> NDArray[np.float64]:
    """The median colour of the border of uint8 [N, H, W, 3]: float64 [N, 3]."""
    inside = np.zeros(pictures.shape[1:3], bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    median: NDArray[np.float64] = np.median(pictures[:, ~inside], axis=1)
    return median


def backgrounds(pictures: Pictures) -> NDArray[np.int64]:
    """The place in GROUNDS of the colour nearest to each background: int64 [N]."""
    return _nearest(ground_colours(pictures), np.array(list(GROUNDS.values()), np.float64))


def foreground(pictures: Pictures) -> NDArray[np.bool_]:
    """Which pixels belong to a thing: bool [N, H, W]."""
    far = np.abs(pictures - ground_colours(pictures)[:, None, None])
    found: NDArray[np.bool_] = far.max(-1) > CONTRAST
    return found


def places(pictures: Pictures) -> NDArray[np.int64]:
    """The place in PLACES that is nearest to the centroid of all things, or NOTHING: int64 [N]."""
    mask = foreground(pictures)
    height, width = mask.shape[1:]
    count = mask.sum((1, 2))
    y, x = (np.arange(size) + 0.5 - size / 2 for size in (height, width))
    quarters = np.stack([mask.sum(1) @ x * 4 / width, mask.sum(2) @ y * 4 / height], 1) / np.maximum(count, 1)[:, None]
    return np.where(count > 0, _nearest(quarters, np.array(list(PLACES.values()), np.float64)), NOTHING)


def tints(pictures: Pictures) -> NDArray[np.int64]:
    """The place in TINTS of the hue nearest to that of the things, or NOTHING where they are grey: int64 [N]."""
    direction = _hue(pictures.astype(np.float64)) * foreground(pictures)
    total = direction.sum((1, 2))
    named = _hue(np.array([COLOURS[tint] for tint in TINTS], np.float64))
    nearest = np.abs(np.angle(total[:, None] / named)).argmin(1)
    return np.where(np.abs(total) > 0, nearest, NOTHING)


def counts(pictures: Pictures) -> NDArray[np.int64]:
    """How many connected things there are, specks left out: int64 [N]."""
    mask = foreground(pictures)
    size = mask[0].size
    seeds = torch.arange(1, size + 1, dtype=torch.float32).reshape(1, 1, *mask.shape[1:])
    member = torch.from_numpy(mask)[:, None]
    labels = seeds * member
    while True:  # every pixel takes the largest label beside it, until each patch wears one
        spread = F.max_pool2d(labels, 3, 1, 1) * member
        if torch.equal(spread, labels):
            break
        labels = spread
    areas = [np.unique(patch[patch > 0], return_counts=True)[1] for patch in labels[:, 0].numpy()]
    return np.array([(area >= SPECK * size).sum() for area in areas], np.int64)


def enlarged(pictures: Pictures, things: Sequence[Thing]) -> Pictures:
    """Of each picture [N, S, S, 3] the window where its thing should stand, enlarged to the whole: the same shape."""
    side, found = pictures.shape[1], np.empty_like(pictures)
    for picture, thing, large in zip(pictures, things, found, strict=True):
        size = round(side * thing.size)
        x, y = corner(side, size, thing.place)
        window = torch.from_numpy(picture[y : y + size, x : x + size].copy()).permute(2, 0, 1)[None].float()
        whole = F.interpolate(window, (side, side), mode="bilinear", align_corners=False)[0]
        large[:] = whole.round().to(torch.uint8).permute(1, 2, 0).numpy()
    return found


def _nearest(points: NDArray[np.float64], named: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each of points [N, D] the nearest of named [M, D]: int64 [N]."""
    found: NDArray[np.int64] = ((points[:, None] - named) ** 2).sum(-1).argmin(1)
    return found


def _hue(colours: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Hue as a direction and chroma as its length, of [..., 3] sRGB: complex [...], zero for greys."""
    thirds = np.exp(2j * np.pi * np.arange(3) / 3)  # red, green and blue, 120 degrees apart
    hue: NDArray[np.complex128] = colours @ thirds
    return hue
