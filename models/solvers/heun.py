"""Heun's method: every interval but the last is evaluated at both ends."""

from __future__ import annotations

from collections.abc import Sequence

from models.grids import Interval
from models.schedule import Schedule
from models.solvers.base import Point, Update, exact_step


def heun(_schedule: Schedule, intervals: Sequence[Interval], _eta: float) -> list[tuple[Update, ...]]:
    """An Euler step in r = sigma/alpha, then the trapezoidal step in its place; history is the x in between.

        x_1 = a x + b D            x' = (1/2 + d) x_1 + alpha'/(2 alpha) x - alpha' d D_1        d = (r' - r)/(2r')

    (Karras et al. 2022, algorithm 1. The last interval ends at r' = 0 and is the Euler step alone.)
    """
    updates: list[tuple[Update, ...]] = []
    for interval in intervals:
        (alpha, sigma), (alpha_next, sigma_next) = interval.start, interval.end
        a, b, _ = exact_step(interval.start, interval.end)
        euler = Update(((a, 0.0), (1.0, 0.0)), (b, 0.0))
        if sigma_next == 0.0:
            updates.append((euler,))
            continue
        d = 0.5 * (1.0 - sigma / alpha * alpha_next / sigma_next)
        matrix = ((0.5 + d, 0.5 * alpha_next / alpha), (0.0, 0.0))
        at_end = Point(interval.c_noise_end, interval.end)
        updates.append((euler, Update(matrix, (-alpha_next * d, 0.0), at=at_end)))
    return updates
