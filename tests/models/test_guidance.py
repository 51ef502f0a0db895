"""Guidance as lanes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.guidance import Guidance, Lane

SHARES = st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)).map(lambda pair: (min(pair), max(pair)))


def weights(guidance: Guidance, step: int = 0, steps: int = 1) -> dict[tuple[str, str], Any]:
    return {(lane.condition, lane.variant): lane.weight for lane in guidance.lanes(step, steps)}


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0, -3.0])
def test_no_guidance_is_the_positive_lane_alone(scale: float) -> None:
    assert Guidance(scale).lanes(0, 1) == (Lane("positive", 1.0),)
    assert Guidance(scale, first_scale=0.5, shape="linear", frames=3).lanes(0, 1) == (Lane("positive", 1.0),)


@settings(max_examples=30)
@given(st.floats(1.001, 100.0), st.floats(-5.0, 5.0), st.floats(-5.0, 5.0))
def test_weights_are_the_published_formula(scale: float, negative: float, positive: float) -> None:
    lanes = Guidance(scale).lanes(0, 1)
    assert [lane.condition for lane in lanes] == ["negative", "positive"]
    guided = negative + scale * (positive - negative)
    assert lanes[0].weight * negative + lanes[1].weight * positive == pytest.approx(guided, rel=1e-9, abs=1e-9)


def test_linear_is_that_of_stable_video_diffusion() -> None:
    """1 to 3 over 14 frames, as torch.linspace in the published pipeline."""
    published = torch.linspace(1.0, 3.0, 14, dtype=torch.float64).tolist()
    lanes = weights(Guidance(3.0, first_scale=1.0, shape="linear", frames=14))
    assert lanes["positive", ""] == pytest.approx(published, rel=1e-15)
    assert lanes["negative", ""] == pytest.approx([1.0 - g for g in published], rel=1e-12)
    assert lanes["negative", ""][0] == 0.0 and lanes["positive", ""][13] == 3.0
    assert weights(Guidance(3.0, shape="linear", frames=14)) == lanes  # it begins at 1 unless told


@pytest.mark.parametrize("frames", [21, 4])
def test_triangle_is_that_of_sv3d(frames: int) -> None:
    """The triangle wave of period 1 in the authors' guider, from 1 to 2.5 and back."""
    values = np.linspace(0.0, 1.0, frames)
    published = 1.0 + 1.5 * 2.0 * np.abs(values - np.floor(values + 0.5))
    ours = weights(Guidance(2.5, first_scale=1.0, shape="triangle", frames=frames))["positive", ""]
    assert ours == pytest.approx(published.tolist(), rel=1e-12)
    assert (ours[0], ours[-1]) == (1.0, 1.0)
    assert max(ours) == pytest.approx(2.5 if frames % 2 else 2.0)
    linear = weights(Guidance(2.5, shape="linear", frames=frames))["positive", ""]
    assert linear != pytest.approx(ours, abs=0.1)


def test_one_frame_has_the_first_scale() -> None:
    assert weights(Guidance(3.0, first_scale=2.0, shape="linear"))["positive", ""] == 2.0


def test_interval_turns_guidance_off_outside() -> None:
    guidance = Guidance(4.0, interval=(0.2, 0.7))
    guided = [len(guidance.lanes(step, 10)) == 2 for step in range(10)]
    assert guided == [False] * 2 + [True] * 5 + [False] * 3
    assert guidance.lanes(0, 10) == (Lane("positive", 1.0),)


def test_skip_layers_are_the_published_formula() -> None:
    """noise_pred += (positive - skipped) * scale, on the steps that the published pipeline picks."""
    guidance = Guidance(5.0, skip_scale=2.5)
    steps = 28
    published = [steps * 0.01 < step < steps * 0.2 for step in range(steps)]
    assert [len(guidance.lanes(step, steps)) == 3 for step in range(steps)] == published
    assert guidance.lanes(3, steps) == (
        Lane("negative", -4.0),
        Lane("positive", 7.5),
        Lane("positive", -2.5, "skip-layers"),
    )
    negative, positive, skipped = 0.3, -0.7, 0.2
    guided = negative + 5.0 * (positive - negative) + (positive - skipped) * 2.5
    assert -4.0 * negative + 7.5 * positive - 2.5 * skipped == pytest.approx(guided, rel=1e-12)


def test_skip_layers_without_classifier_free_guidance() -> None:
    lanes = Guidance(skip_scale=2.0, skip_interval=(0.0, 1.0)).lanes(1, 4)
    assert lanes == (Lane("positive", 3.0), Lane("positive", -2.0, "skip-layers"))


def test_lanes_of_weight_zero_are_left_out() -> None:
    assert ("negative", "") not in weights(Guidance(1.0))
    assert ("positive", "skip-layers") not in weights(Guidance(2.0))


@settings(max_examples=100)
@given(
    st.floats(-2.0, 20.0),
    st.floats(0.0, 10.0),
    st.sampled_from(["constant", "linear", "triangle"]),
    st.integers(1, 25),
    SHARES,
    st.floats(0.0, 4.0),
    SHARES,
    st.integers(0, 19),
)
def test_weights_sum_to_one_in_every_frame(
    scale: float,
    first: float,
    shape: str,
    frames: int,
    interval: tuple[float, float],
    skip: float,
    skip_interval: tuple[float, float],
    step: int,
) -> None:
    first_scale = None if shape == "constant" else first
    lanes = Guidance(scale, first_scale, shape, frames, 0.0, interval, skip, skip_interval).lanes(step, 20)
    assert len(lanes) <= 3 and all(np.any(lane.weight) for lane in lanes)
    assert ("positive", "") in {(lane.condition, lane.variant) for lane in lanes}
    assert sum(np.array(lane.weight) for lane in lanes) == pytest.approx(1.0, abs=1e-12)
    assert {len(lane.weight) for lane in lanes if isinstance(lane.weight, tuple)} <= {frames}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": float("nan")}, "scale must be a finite number, got nan"),
        ({"scale": 2.0, "first_scale": float("inf"), "shape": "linear"}, "first_scale must be a finite"),
        ({"skip_scale": float("-inf")}, "skip_scale must be a finite"),
        ({"skip_scale": -0.5}, "skip_scale must be at least 0, got -0.5"),
        ({"shape": "square"}, "'square' is not known; known: constant, linear, triangle"),
        ({"first_scale": 1.0}, "first_scale 1.0 needs shape linear or triangle"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"rescale": 1.5}, "rescale must be between 0 and 1, got 1.5"),
        ({"interval": (0.5, 0.2)}, r"interval .* got \(0.5, 0.2\)"),
        ({"skip_interval": (-0.1, 0.2)}, "skip_interval"),
    ],
)
def test_what_is_out_of_range_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guidance(**fields)
