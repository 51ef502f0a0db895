"""Multistep consistency sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

from models.grids import Interval
from models.schedule import Schedule
from models.solvers.base import Update

_SIGMA_DATA = 0.5


def consistency(schedule: Schedule, intervals: Sequence[Interval], _eta: float) -> list[tuple[Update, ...]]:
    """Every line jumps to an estimate of x0 and, but for the last, noises it to the next level.

        f = c x + d D        c = 1/4 / ((10t)^2 + 1/4)        d = 10t / sqrt((10t)^2 + 1/4)
        x' = alpha' f + sigma' noise

    (Luo et al. 2023, Latent Consistency Models, algorithm 3 and section 3; c and d make f the identity at t = 0.)
    """
    updates: list[tuple[Update, ...]] = []
    for interval in intervals:
        alpha, sigma = interval.end
        scaled = interval.c_noise * schedule.timestep_scaling
        c = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        d = scaled / math.hypot(scaled, _SIGMA_DATA)
        updates.append((Update(((alpha * c,),), (alpha * d,), sigma, draw=sigma > 0.0),))
    return updates
