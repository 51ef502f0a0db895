"""UniPC: a predictor of second order, and a corrector that reuses the next line's evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from models.grids import Interval
from models.schedule import Array, Schedule
from models.solvers.base import Update, exact_step, log_snr


def unipc(_schedule: Schedule, intervals: Sequence[Interval], _eta: float) -> list[tuple[Update, ...]]:
    """UniPC of order 2 with B(h) = exp(h) - 1, predicting x0 (Zhao et al. 2023, section 3; variant bh2).

    History is (corrected x of the line before, D of the line before, D of two lines before). A line evaluates D at the
    predicted x, corrects that x with it, and predicts the next x from the corrected one:

        x_c = a_0 h1 + b_0 (h2 + rho_0 (h3 - h2)/r + rho_1 (D - h2))        of the interval before, D at its end
        x'  = a x_c + b (D + (h2 - D)/(2r))
    """
    updates: list[tuple[Update, ...]] = []
    order = 0
    for step, interval in enumerate(intervals):
        corrected = _corrected(intervals[max(step - 2, 0) : step], order)
        # First order where there is no history, and where h is infinite.
        order = 1 if step == 0 or interval.end.sigma == 0.0 else 2
        a, b, _ = exact_step(interval.start, interval.end)
        predicted = a * corrected + b * _unit(4)
        if order == 2:
            predicted += 0.5 * b / _ratio(intervals[step - 1], interval) * (_unit(2) - _unit(4))
        rows = np.array([predicted, corrected, _unit(4), _unit(2)])
        updates.append((Update(tuple(map(tuple, rows[:, :4].tolist())), tuple(rows[:, 4].tolist())),))
    return updates


def _corrected(past: Sequence[Interval], order: int) -> Array:
    """x_c in terms of (x, h1, h2, h3, D): x itself without a past, otherwise the corrected end of the last interval."""
    if not past:
        return _unit(0)
    interval = past[-1]
    a, b, _ = exact_step(interval.start, interval.end)
    corrected = a * _unit(1) + b * _unit(2)
    if order == 1:
        return corrected + 0.5 * b * (_unit(4) - _unit(2))
    r = _ratio(past[0], interval)
    rho = _corrector_weights(log_snr(interval.end) - log_snr(interval.start), r)
    return corrected + b * (rho[0] / r * (_unit(3) - _unit(2)) + rho[1] * (_unit(4) - _unit(2)))


def _corrector_weights(h: float, r: float) -> Array:
    """The solution of  rho_0 + rho_1 = b_1,  r rho_0 + rho_1 = b_2,  where b_k = k! phi_(k+1)(-h) (-h) / B(-h)."""
    b_h = math.expm1(-h)
    phi_2 = b_h / -h - 1.0
    phi_3 = phi_2 / -h - 0.5
    b_1, b_2 = phi_2 / b_h, 2.0 * phi_3 / b_h
    rho_0 = (b_1 - b_2) / (1.0 - r)
    return np.array([rho_0, b_1 - rho_0])


def _ratio(before: Interval, interval: Interval) -> float:
    """(lambda_before - lambda) / (lambda' - lambda), which is negative."""
    here = log_snr(interval.start)
    return (log_snr(before.start) - here) / (log_snr(interval.end) - here)


def _unit(slot: int) -> Array:
    return np.eye(5)[slot]
