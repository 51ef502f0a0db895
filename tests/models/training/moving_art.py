"""Drawings and animations made on the spot: discs of a few colours, and discs that travel."""

from __future__ import annotations

import numpy as np

from models.training.animations import Animations
from models.training.artwork import Drawings

SIDE = 64


def disc(x: float, y: float, colour: tuple[int, int, int], radius: float = 14.0) -> np.ndarray:
    """A disc with a dark core, uint8 [SIDE, SIDE, 4], premultiplied."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    distance = np.hypot(columns - x, rows - y)
    picture = np.zeros((SIDE, SIDE, 4), np.uint8)
    picture[distance < radius] = (*colour, 255)
    picture[distance < radius / 3] = (20, 20, 20, 255)
    return picture


def drawings() -> Drawings:
    """Three drawings in one style."""
    pixels = np.stack([disc(31, 31, c) for c in ((220, 40, 40), (40, 180, 60), (60, 60, 220))])
    words = ("one", "two", "three")
    order = np.arange(3)
    return Drawings(pixels, order, np.zeros(3, np.int64), words, words, words, ((),) * 3, ("3d",))


def animations() -> Animations:
    """Two loops of twelve frames: one goes right by a pixel and a half a frame, one stands still."""
    going = [disc(22 + 1.5 * t, 31, (200, 150, 40)) for t in range(12)]
    standing = [disc(31, 31, (40, 150, 200))] * 12
    return Animations(np.stack([*going, *standing]), np.array([12, 24]), ("1f600", "1f601"))
