"""The exact step that every solver is made of."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.schedule import Level
from models.solvers.base import exact_step, log_snr

abars = st.floats(1e-6, 1.0 - 1e-6)


def vp(abar: float) -> Level:
    return Level(math.sqrt(abar), math.sqrt(1.0 - abar))


@given(abars, abars, st.floats(0.0, 1.0))
def test_step_keeps_signal_and_noise_at_the_level_it_ends_at(one: float, other: float, eta: float) -> None:
    """x = alpha x0 + sigma eps and D = x0 give x' = alpha' x0 + noise of deviation sigma', fresh or not."""
    start, end = vp(min(one, other)), vp(max(one, other))
    a, b, s = exact_step(start, end, eta)
    assert a * start.alpha + b == pytest.approx(end.alpha, abs=1e-12)
    assert math.hypot(a * start.sigma, s) == pytest.approx(end.sigma, rel=1e-9)


def test_eta_is_the_share_of_fresh_noise() -> None:
    start, end = vp(0.2), vp(0.6)
    shares = [exact_step(start, end, eta)[2] for eta in (0.0, 0.5, 1.0)]
    assert shares[0] == 0.0 and shares[2] == pytest.approx(2.0 * shares[1]) and 0.0 < shares[2] < end.sigma


def test_ends_of_a_schedule() -> None:
    assert exact_step(Level(0.0, 1.0), Level(0.25, 0.75)) == (0.75, 0.25, 0.0)
    assert exact_step(Level(0.6, 0.8), Level(1.0, 0.0), 1.0) == (0.0, 1.0, 0.0)
    assert log_snr(Level(0.0, 1.0)) == -math.inf and log_snr(Level(1.0, 0.0)) == math.inf
    assert log_snr(Level(0.6, 0.8)) == pytest.approx(math.log(0.75))
