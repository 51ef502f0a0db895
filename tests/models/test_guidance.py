"""Guidance as lane weights."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.guidance import lane_weights


@pytest.mark.parametrize("guidance", [1.0, 0.5, 0.0, -3.0])
def test_no_guidance_is_the_positive_lane_alone(guidance: float) -> None:
    assert lane_weights(guidance) == (1.0,)


@settings(deadline=None, max_examples=30)
@given(st.floats(1.0, 100.0, exclude_min=True), st.floats(-5.0, 5.0), st.floats(-5.0, 5.0))
def test_weights_are_the_published_formula(guidance: float, negative: float, positive: float) -> None:
    w_negative, w_positive = lane_weights(guidance)
    guided = negative + guidance * (positive - negative)
    assert w_negative * negative + w_positive * positive == pytest.approx(guided, rel=1e-12, abs=1e-12)


def test_weights_have_the_order_negative_positive() -> None:
    assert lane_weights(7.5) == (-6.5, 7.5)


@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), float("-inf")])
def test_a_scale_that_is_no_number_is_refused(guidance: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        lane_weights(guidance)
