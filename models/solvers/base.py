"""What a solver is: the levels it visits, and its updates between them as rows of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from models.grids import Grid, Interval
from models.schedule import Level, Schedule

Vector = tuple[float, ...]
Matrix = tuple[Vector, ...]


class Point(NamedTuple):
    """Where a network is evaluated."""

    c_noise: float
    level: Level


class Update(NamedTuple):
    """The part of a line that belongs to the solver: y' = a y + b D + s noise, with y = (x, h1 .. hK)."""

    a: Matrix
    b: Vector
    s: float = 0.0
    draw: bool = False
    at: Point | None = None
    """Where D is evaluated; None is the start of the interval."""


Rule = Callable[[Schedule, Sequence[Interval], float], list[tuple[Update, ...]]]
"""(schedule, intervals, eta) -> for each interval its updates, one an evaluation. The history is empty at the first."""


@dataclass(frozen=True)
class Solver:
    """How a solver fills a table."""

    grids: Mapping[str, Callable[[Schedule, int], Grid]]
    """The grid for each kind of schedule that the solver runs on."""
    rule: Rule
    history: int = 0
    """K, the number of history slots."""
    eta: float | None = 0.0
    """Share of fresh noise in a step, from 0 (none) to 1 (ancestral sampling). None: the caller chooses."""


def exact_step(start: Level, end: Level, eta: float = 0.0) -> tuple[float, float, float]:
    """a, b and s of the exact solution x' = a x + b D + s noise for constant D, a share of the noise being fresh.

    q = sigma' alpha / (sigma alpha')       s = eta sigma' sqrt(1 - q^2)
    a = sqrt(sigma'^2 - s^2) / sigma        b = alpha' - a alpha
    """
    (alpha, sigma), (alpha_next, sigma_next) = start, end
    q = sigma_next * alpha / (sigma * alpha_next)
    s = eta * sigma_next * math.sqrt(1.0 - q**2)
    # sqrt(sigma'^2 - s^2) without the difference: at zero terminal SNR and eta = 1 it is 0, and rounding decides.
    a = sigma_next / sigma * math.hypot(math.sqrt(1.0 - eta**2), eta * q)
    return a, alpha_next - a * alpha, s


def log_snr(level: Level) -> float:
    """lambda = log(alpha/sigma), infinite at the ends of a schedule."""
    if level.alpha == 0.0:
        return -math.inf
    return math.inf if level.sigma == 0.0 else math.log(level.alpha / level.sigma)
