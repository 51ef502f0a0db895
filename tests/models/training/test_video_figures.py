"""The figures of clips, on clips whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.training.clips import set_in_motion
from models.training.video_figures import (
    OrderClassifier,
    flicker,
    frame_change,
    lag_profile,
    motion_figures,
    spearman,
    still_region,
)
from tests.models.training.moving_art import drawings


def moving(count: int, seed: int) -> torch.Tensor:
    made = [set_in_motion(np.random.default_rng(seed + i), drawings().pixels[i % 3]) for i in range(2 * count)]
    frames = [torch.from_numpy(clip.frames).permute(0, 3, 1, 2) / 255.0 for clip in made if clip.speed > 0.3]
    return torch.stack(frames[:count])


def test_order_is_told_from_disorder() -> None:
    classifier = OrderClassifier.fit(moving(24, 0), 0)
    others = moving(12, 900)
    assert classifier.accuracy(others, 1) > 0.8
    noise = torch.rand(12, 8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert classifier.accuracy(noise, 1) < 0.8
    assert classifier.accuracy(others[:, :1].expand_as(others), 1) == 0.5


def test_frames_that_do_not_differ_have_a_flat_profile() -> None:
    assert torch.equal(lag_profile(torch.ones(8, 3, 4, 4)), torch.ones(7))
    ramp = torch.arange(8.0)[:, None, None, None].expand(8, 3, 4, 4)
    profile = lag_profile(ramp)
    assert bool((profile.diff() > 0).all()) and float(profile[6] / profile[0]) == pytest.approx(7.0, rel=1e-4)


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 25, 90]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    ties = spearman([1, 1, 2, 3], [1, 2, 3, 3])
    assert ties == pytest.approx(np.corrcoef([1.5, 1.5, 3, 4], [1, 2, 3.5, 3.5])[0, 1])


def test_flicker_counts_still_pixels_only() -> None:
    clip = torch.zeros(4, 3, 32, 32)
    for t in range(4):
        clip[t, :, 4:8, 2 + t : 6 + t] = 1.0  # something moves in the upper left
    region = still_region(clip)
    assert not region[4:8, 2:9].any() and region[20:, 20:].all()
    assert flicker(clip, region) == 0.0 < frame_change(clip)
    clip[1::2, :, 20:] += 0.02
    assert flicker(clip, region) == pytest.approx(0.02 * float(region[20:].sum() / region.sum()), rel=1e-3)
    assert flicker(clip, torch.zeros(32, 32, dtype=torch.bool)) == 0.0


def test_asked_and_measured_motion() -> None:
    def drift(step: int) -> torch.Tensor:
        noise = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
        smooth = torch.nn.functional.avg_pool2d(noise, 5, 1)[0]
        return torch.stack([smooth.roll(step * t, dims=2) for t in range(4)])

    figures = motion_figures([0, 64, 128, 192], [drift(step) for step in (0, 1, 2, 3)])
    assert figures["spearman"] == pytest.approx(1.0) and figures["spearman_of_another_clips_bucket"] < 0.0
    assert figures["measured_pixels_a_frame"] == pytest.approx(figures["asked_pixels_a_frame"], abs=0.3)
