"""Block matching finds steps that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.training.flow import REACH, mean_speed
from models.training.motion import Motion, moved
from tests.models.training.moving_art import SIDE


def textured() -> np.ndarray:
    """Smooth noise all over, uint8 [SIDE, SIDE, 4], opaque."""
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, (SIDE, SIDE), mode="bicubic").clamp(0, 1)[0]
    colours = (smooth * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return np.concatenate([colours, np.full((SIDE, SIDE, 1), 255, np.uint8)], axis=2)


def clip(pixels_a_frame: float, frames: int = 3) -> torch.Tensor:
    poses = Motion("drift", pixels_a_frame * 2.0 / SIDE, 1.0, 0.6).poses(frames)
    return torch.from_numpy(moved(textured(), poses)[..., :3]).permute(0, 3, 1, 2) / 255.0


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.3, 4.0])
def test_a_known_drift_is_found(speed: float) -> None:
    assert mean_speed(clip(speed)) == pytest.approx(speed, abs=0.3)


def test_faster_is_measured_as_faster() -> None:
    speeds = [mean_speed(clip(speed)) for speed in (0.25, 0.75, 1.5, 3.0, 4.5)]
    assert speeds == sorted(speeds)


def test_what_stands_still_is_exactly_zero_and_so_is_an_empty_picture() -> None:
    assert mean_speed(clip(0.0)) == 0.0
    assert mean_speed(torch.ones(3, 3, SIDE, SIDE)) == 0.0


def test_steps_beyond_reach_are_not_invented() -> None:
    assert mean_speed(clip(3 * REACH, 2)) <= REACH * 2**0.5 + 1.0
