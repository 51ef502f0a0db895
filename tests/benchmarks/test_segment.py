"""What a segment counts, and how two are compared."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from benchmarks.load import Answer, Request, Run
from benchmarks.segment import Segment, difference, ratio

NAN = float("nan")


def run_of(*greys: int | None, seconds: float = 0.5) -> Run:
    """Answers with a picture of one grey each; None is one that failed."""
    answers = []
    for i, grey in enumerate(greys):
        buffer = io.BytesIO()
        Image.fromarray(np.full((2, 2, 3), grey or 0, np.uint8)).save(buffer, "png")
        picture = "" if grey is None else base64.b64encode(buffer.getvalue()).decode()
        request = Request("m", "a", 4 + i, 1.0, i, "euler")
        answers.append(Answer(request, seconds, picture, "500: out of luck" if grey is None else ""))
    return Run(answers, 1.0)


def segment(run: Run, cpu_s: float) -> Segment:
    return Segment("lock", run, cpu_s, NAN, NAN, 1.0, 0.0)


def test_a_fault_is_told_and_is_no_picture() -> None:
    found = segment(run_of(1, None), 3.0)
    assert found.cpu_per_picture == 3.0
    assert found.to_json()["faults"] == 1 and found.to_json()["mean_lanes"] is None


def test_what_went_wrong_on_one_side_is_compared_with_nothing() -> None:
    good, slow = segment(run_of(1, 2), 1.0), segment(run_of(1, 2, seconds=2.0), 4.0)
    assert ratio("cpu_s_per_picture", good, slow) == pytest.approx(0.25)
    assert ratio("short_p95_s", good, slow) == pytest.approx(0.25)
    assert math.isnan(ratio("cpu_s_per_picture", good, segment(run_of(1, None), 3.0)))


def test_pictures_are_compared_one_by_one() -> None:
    ours, theirs = run_of(1, 5), run_of(1, 8)
    assert difference(ours, theirs) == {"compared": 2, "mean": 1.5, "largest": 3, "beyond_one_level": 1}
    assert difference(Run([], 1.0), Run([], 1.0)) == {"compared": 0}
