"""Procedural motion: the drawing first, speeds as asked, and pixels that go where the flow says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.training.motion import (
    KINDS,
    MAX_BUCKET,
    MAX_SPEED,
    Motion,
    bucket,
    mean_speed,
    moved,
    random_motion,
)
from tests.models.training.moving_art import SIDE, disc, drawings

DRAWING = disc(31.5, 31.5, (200, 40, 40))


def centre(frame: np.ndarray) -> np.ndarray:
    """Centre of mass (x, y) of what is opaque."""
    rows, columns = np.nonzero(frame[..., 3] > 127)
    return np.array([columns.mean(), rows.mean()])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_first_frame_is_the_drawing(kind: str) -> None:
    frames = moved(drawings().pixels[0], Motion(kind, 0.2, 0.7, 1.0).poses(4))
    assert np.abs(frames[0].astype(int) - drawings().pixels[0]).max() <= 1
    assert np.abs(frames[2].astype(int) - drawings().pixels[0]).max() > 50


def test_a_drift_moves_the_pixels_by_its_speed() -> None:
    motion = Motion("drift", 2.0 * 2.0 / SIDE, 1.0, 0.0)  # two pixels a frame to the right
    frames = moved(DRAWING, motion.poses(4))
    assert mean_speed(motion, DRAWING, 4) == pytest.approx(2.0, abs=1e-4)
    assert centre(frames[3]) - centre(frames[0]) == pytest.approx([6.0, 0.0], abs=0.05)


def test_a_spin_is_as_fast_as_its_radius_says() -> None:
    turn = 0.1
    rows, columns = np.nonzero(DRAWING[..., 3] > 127)
    radius = np.hypot(columns - 31.5, rows - 31.5).mean()
    assert mean_speed(Motion("spin", turn, 1.0, 0.0), DRAWING, 5) == pytest.approx(
        2 * math.sin(turn / 2) * radius, rel=1e-4
    )


def test_random_motions_cover_the_speeds_and_stand_still_at_times() -> None:
    random = np.random.default_rng(0)
    speeds = [random_motion(random, DRAWING, 8)[1] for _ in range(60)]
    assert min(speeds) == 0.0 and sum(speed == 0.0 for speed in speeds) < 25
    assert 2.0 < max(speeds) < 1.5 * MAX_SPEED
    first = random_motion(np.random.default_rng(1), DRAWING, 8)
    assert first == random_motion(np.random.default_rng(1), DRAWING, 8) != random_motion(random, DRAWING, 8)


def test_buckets_count_from_still_to_the_most() -> None:
    assert (bucket(0.0), bucket(1.0), bucket(99.0)) == (0, 64, MAX_BUCKET)


def test_an_empty_drawing_does_not_move() -> None:
    empty = np.zeros((SIDE, SIDE, 4), np.uint8)
    assert mean_speed(Motion("drift", 1.0, 1.0, 0.0), empty, 4) == 0.0
    assert torch.isfinite(random_motion(np.random.default_rng(3), empty, 8)[0].poses(8)).all()
