"""Guidance as lanes: which conditions a row is evaluated under at one step, and how the outputs are weighed.

    F = sum_k w_k F_k        with weights that sum to 1

Classifier-free guidance (Ho and Salimans 2022, equation 6, in the scale that Imagen and Stable Diffusion publish) has
two lanes. Skip-layer guidance (the published Stable Diffusion 3.5 sampler) has one more, of the network with some
layers left out:

    F = F_negative + g (F_positive - F_negative) + k (F_positive - F_skipped)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["SHAPES", "SKIP_LAYERS", "Guidance", "Lane", "Weight"]

Weight = float | tuple[float, ...]
"""One weight, or one a frame."""

SHAPES = ("constant", "linear", "triangle")
"""How the scale runs over the frames of a clip."""

SKIP_LAYERS = "skip-layers"
"""The variant of a network that leaves out some of its layers."""


@dataclass(frozen=True)
class Lane:
    """One evaluation of the network at one step of one row."""

    condition: str
    """Name of one of the row's conditions."""
    weight: Weight
    variant: str = ""
    """Which forward of the network: "" is the ordinary one."""


@dataclass(frozen=True)
class Guidance:
    """The guidance that a request asks for. Intervals are shares of all steps of the solver, (0, 1) being every step.

    Raises:
        ValueError: a field is out of range, or contradicts another; the message names it.
    """

    scale: float = 1.0
    """Of classifier-free guidance; at most 1 is none, as in the published pipelines."""
    first_scale: float | None = None
    """The scale of frame 0 for the shapes that have one; None is 1."""
    shape: str = "constant"
    """``linear`` runs from ``first_scale`` in frame 0 to ``scale`` in the last (Stable Video Diffusion), ``triangle``
    up to ``scale`` in the middle and back (SV3D)."""
    frames: int = 1
    rescale: float = 0.0
    """phi of Lin et al. 2024, section 3.4, from 0 (none) to 1. It acts where more than one lane runs."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Where classifier-free guidance acts, start included and end not (Kynkaanniemi et al. 2024)."""
    skip_scale: float = 0.0
    """k of skip-layer guidance; 0 is none."""
    skip_interval: tuple[float, float] = (0.01, 0.2)
    """Where skip-layer guidance acts, both ends not included, as published."""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"guidance shape {self.shape!r} is not known; known: {', '.join(SHAPES)}")
        for name in ("scale", "first_scale", "skip_scale"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"guidance {name} must be a finite number, got {value}")
        if self.shape == "constant" and self.first_scale is not None:
            raise ValueError(f"guidance first_scale {self.first_scale} needs shape linear or triangle, got constant")
        if self.frames < 1:
            raise ValueError(f"guidance frames must be at least 1, got {self.frames}")
        if self.skip_scale < 0.0:
            raise ValueError(f"guidance skip_scale must be at least 0, got {self.skip_scale}")
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"guidance rescale must be between 0 and 1, got {self.rescale}")
        for name in ("interval", "skip_interval"):
            start, end = getattr(self, name)
            if not 0.0 <= start <= end <= 1.0:
                raise ValueError(f"guidance {name} must be two shares with 0 <= start <= end <= 1, got {(start, end)}")

    def lanes(self, step: int, steps: int) -> tuple[Lane, ...]:
        """The lanes of step ``step`` (from 0) of ``steps``, those of weight 0 left out.

        Their order is (negative, positive, positive with layers left out). The second is always there.
        """
        start, end = self.interval
        scales = np.array(self._scales() if start * steps <= step < end * steps else (1.0,))
        if scales.max() <= 1.0:
            scales = np.ones(1)
        skip_start, skip_end = self.skip_interval
        skip = self.skip_scale if skip_start * steps < step < skip_end * steps else 0.0
        lanes = (
            Lane("negative", _weight(1.0 - scales)),
            Lane("positive", _weight(scales + skip)),
            Lane("positive", -skip, SKIP_LAYERS),
        )
        return tuple(lane for lane in lanes if np.any(lane.weight))

    def _scales(self) -> tuple[float, ...]:
        """The scale of every frame, or one for all."""
        if self.shape == "constant":
            return (self.scale,)
        first = 1.0 if self.first_scale is None else self.first_scale
        place = np.linspace(0.0, 1.0, self.frames)
        if self.shape == "triangle":
            place = 1.0 - np.abs(2.0 * place - 1.0)
        return tuple((first + (self.scale - first) * place).tolist())


def _weight(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Weight:
    return float(values[0]) if len(values) == 1 else tuple(values.tolist())
