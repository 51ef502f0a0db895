"""Solvers that look at one level at a time."""

from __future__ import annotations

from collections.abc import Sequence

from models.grids import Interval
from models.schedule import Schedule
from models.solvers.base import Update, exact_step


def first_order(_schedule: Schedule, intervals: Sequence[Interval], eta: float) -> list[tuple[Update, ...]]:
    """The exact solution for constant D, with a share of the noise replaced by fresh noise.

    In VP scale this is DDIM (Song et al. 2021, equations 12 and 16). In VE scale it is Euler (Karras et al. 2022,
    algorithm 1, first order) for eta = 0, and Euler-ancestral for eta = 1, with s = sigma_up and a = sigma_down/sigma.
    On a flow schedule it is the Euler step along the straight line (Esser et al. 2024, section 2).
    """
    updates: list[tuple[Update, ...]] = []
    for interval in intervals:
        a, b, s = exact_step(interval.start, interval.end, eta)
        updates.append((Update(((a,),), (b,), s, draw=eta > 0.0),))
    return updates
