"""Drawings set in motion, with a flow that is known exactly, and the measure of motion that the video model is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

BUCKETS_PER_PIXEL = 64.0
"""Motion bucket of a clip whose object moves by one pixel a frame in the mean."""
MAX_BUCKET = 255
MAX_SPEED = 3.5
STILL_SHARE = 0.12
"""Clips in which nothing moves, so that bucket 0 means just that."""

Pose = Callable[[float, float, float], Tensor]
"""(time in radians, amplitude, angle) -> affine map [2, 3] from the drawing to the frame, in units of half a side."""


@dataclass(frozen=True)
class Motion:
    """One way to move: its poses at amplitude ``amplitude`` and frames ``advance`` radians apart."""

    kind: str
    amplitude: float
    advance: float
    angle: float
    """Direction of what has one, radians."""

    def poses(self, frames: int) -> Tensor:
        """Affine maps [frames, 2, 3]; the first one is the drawing as it is."""
        return torch.stack([KINDS[self.kind](self.advance * t, self.amplitude, self.angle) for t in range(frames)])


def bucket(speed: float) -> int:
    """Motion bucket, 0 to 255, of a mean speed in pixels a frame."""
    return min(MAX_BUCKET, round(BUCKETS_PER_PIXEL * speed))


def random_motion(random: np.random.Generator, drawing: NDArray[np.uint8], frames: int) -> tuple[Motion, float]:
    """A motion for this drawing, uint8 [S, S, 4], and its mean speed over the object in pixels a frame."""
    if random.random() < STILL_SHARE:
        return Motion("drift", 0.0, 1.0, 0.0), 0.0
    kind = str(random.choice(sorted(KINDS)))
    # Whatever swings does so once in 6 to 14 frames; whatever goes on takes equal steps.
    advance = 1.0 if kind in ("drift", "spin") else 2.0 * math.pi / random.uniform(6.0, 14.0)
    unit = Motion(kind, 0.02, advance, random.uniform(0.0, 2.0 * math.pi))
    wanted = random.uniform(0.1, MAX_SPEED)
    motion = Motion(kind, unit.amplitude * wanted / max(mean_speed(unit, drawing, frames), 1e-6), advance, unit.angle)
    return motion, mean_speed(motion, drawing, frames)


def mean_speed(motion: Motion, drawing: NDArray[np.uint8], frames: int) -> float:
    """Length of the step from frame to frame in pixels, averaged over the object and the clip."""
    side = len(drawing)
    rows, columns = np.nonzero(drawing[..., 3] > 127)
    if not len(rows):
        return 0.0
    grid = np.stack([columns, rows, np.full(len(rows), (side - 1) / 2 + side / 2)])
    points = torch.from_numpy((grid - (side - 1) / 2) / (side / 2)).float()  # homogeneous, in half sides
    steps = (motion.poses(frames) @ points).diff(dim=0) * (side / 2)
    return float(steps.norm(dim=1).mean())


def moved(drawing: NDArray[np.uint8], poses: Tensor) -> NDArray[np.uint8]:
    """Frames uint8 [T, S, S, 4] of a premultiplied drawing uint8 [S, S, 4], bilinear, transparent beyond its rim."""
    source = torch.from_numpy(drawing).permute(2, 0, 1).float()
    square = torch.cat([poses, torch.tensor([0.0, 0.0, 1.0]).expand(len(poses), 1, 3)], dim=1)
    back = torch.linalg.inv(square)[:, :2]
    grid = F.affine_grid(back, [len(poses), *source.shape], align_corners=False)
    frames = F.grid_sample(source.expand(len(poses), -1, -1, -1), grid, align_corners=False)
    array: NDArray[np.uint8] = frames.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(array)


def _drift(time: float, amplitude: float, angle: float) -> Tensor:
    return _affine(0.0, 1.0, amplitude * time * math.cos(angle), amplitude * time * math.sin(angle))


def _bounce(time: float, amplitude: float, _angle: float) -> Tensor:
    return _affine(0.0, 1.0, 0.0, -amplitude * abs(math.sin(time / 2)))


def _spin(time: float, amplitude: float, angle: float) -> Tensor:
    return _affine(amplitude * time if angle < math.pi else -amplitude * time, 1.0, 0.0, 0.0)


def _sway(time: float, amplitude: float, angle: float) -> Tensor:
    turn = amplitude * math.sin(time if angle < math.pi else -time)
    # About the middle of the lower rim, (0, 1): there, as with a plant, nothing moves.
    return _affine(turn, 1.0, math.sin(turn), 1.0 - math.cos(turn))


def _pulse(time: float, amplitude: float, angle: float) -> Tensor:
    swing = math.sin(time if angle < math.pi else -time)
    return _affine(0.0, math.exp(amplitude * swing), 0.0, 0.0)


def _affine(turn: float, scale: float, x: float, y: float) -> Tensor:
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    return torch.tensor([[cos, -sin, x], [sin, cos, y]])


KINDS: dict[str, Pose] = {
    "bounce": _bounce,
    "drift": _drift,
    "pulse": _pulse,
    "spin": _spin,
    "sway": _sway,
}
