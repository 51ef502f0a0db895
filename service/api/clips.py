"""How long a clip can be: frames a second, and how many passes of the model."""

from __future__ import annotations

from dataclasses import dataclass

from service.api.schema import FPS

NATIVE_FPS = 7
"""At which Stable Video Diffusion's authors save its clips."""
MAX_SEGMENTS = 4
"""Passes: each begins from the last frame of the one before, and errors add up."""


@dataclass(frozen=True)
class Length:
    """Of a clip that is made in ``segments`` passes of ``frames`` each."""

    frames: int
    segments: int
    fps: int

    @property
    def total_frames(self) -> int:
        """Frames of the clip: the last of a pass is the first of the next and is there once."""
        return self.segments * (self.frames - 1) + 1

    @property
    def seconds(self) -> float:
        """Duration of the clip."""
        return self.total_frames / self.fps


def choose_length(frames: int, seconds: float | None, fps: int | None) -> Length:
    """The length nearest to what was asked for, in as few passes as reach it.

    Args:
        frames: of one pass, at least 2.
        seconds: asked duration; None: one pass at the native rate or the asked one.
        fps: asked rate; None: whatever brings the duration nearest.

    Raises:
        ValueError: it is shorter or longer than can be made; the message says what can.
    """
    if seconds is None:
        return Length(frames, 1, fps or NATIVE_FPS)
    rates = (fps,) if fps is not None else tuple(range(FPS[0], FPS[1] + 1))
    for segments in range(1, MAX_SEGMENTS + 1):
        lengths = [Length(frames, segments, rate) for rate in rates]
        best = min(lengths, key=lambda length: abs(length.seconds - seconds))
        # Between two lengths lies at most the step to the next rate, or to the next pass where the rate is given.
        reach_s = 0.5 * (frames - 1) / fps if fps is not None else 0.0
        if lengths[-1].seconds - reach_s <= seconds <= lengths[0].seconds + reach_s:
            return best
    shortest, longest = Length(frames, 1, rates[-1]), Length(frames, MAX_SEGMENTS, rates[0])
    raise ValueError(
        f"seconds {seconds:g} cannot be made; between {shortest.seconds:.2f} and {longest.seconds:.2f} can"
        + (f" at {fps} frames a second" if fps is not None else "")
    )
