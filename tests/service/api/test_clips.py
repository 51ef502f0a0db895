"""Durations that can be made."""

from __future__ import annotations

import pytest

from service.api.clips import MAX_SEGMENTS, Length, choose_length


def test_without_a_wish_it_is_one_pass() -> None:
    assert choose_length(14, None, None) == Length(14, 1, 7) and Length(14, 1, 7).seconds == 2.0
    assert choose_length(14, None, 10) == Length(14, 1, 10)


@pytest.mark.parametrize(
    ("seconds", "segments", "fps", "made"),
    [
        (2, 1, 7, 2.0),
        (1, 1, 14, 1.0),
        (2.8, 1, 5, 2.8),
        (0.47, 1, 30, 14 / 30),
        (4, 2, 7, 27 / 7),  # two passes of 14 share a frame
        (5.4, 2, 5, 5.4),
        (8, 3, 5, 8.0),
        (10.6, 4, 5, 10.6),
    ],
)
def test_the_nearest_in_the_fewest_passes(seconds: float, segments: int, fps: int, made: float) -> None:
    length = choose_length(14, seconds, None)
    assert (length.segments, length.fps) == (segments, fps) and length.seconds == pytest.approx(made)


@pytest.mark.parametrize("frames", [14, 25])
def test_it_is_near_for_every_wish_within_reach(frames: int) -> None:
    longest = Length(frames, MAX_SEGMENTS, 5).seconds
    wishes = [0.05 * step for step in range(1, 1000) if frames / 30 <= 0.05 * step <= longest]
    for wish in wishes:
        length = choose_length(frames, wish, None)
        assert abs(length.seconds - wish) / wish < 0.1
        assert length.segments == 1 or Length(frames, length.segments - 1, 5).seconds < wish
    assert len(wishes) > 100


def test_at_a_given_rate_passes_are_counted() -> None:
    assert choose_length(14, 4, 7) == Length(14, 2, 7)
    assert choose_length(14, 2.2, 7) == Length(14, 1, 7)
    with pytest.raises(ValueError, match="at 30 frames a second"):
        choose_length(14, 4, 30)


@pytest.mark.parametrize("seconds", [0.1, 12, 1e300])
def test_what_cannot_be_made_says_what_can(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"between 0\.47 and 10\.60"):
        choose_length(14, seconds, None)
