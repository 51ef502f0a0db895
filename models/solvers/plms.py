"""PLMS: the pseudo linear multistep method, the sampler of the first latent diffusion models."""

from __future__ import annotations

from collections.abc import Sequence

from models.grids import Interval, vp_level
from models.schedule import Level, Schedule, preconditioning
from models.solvers.base import Matrix, Point, Update, Vector, exact_step

_ADAMS_BASHFORTH: tuple[Vector, ...] = (
    (1.0, 0.0, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
_NONE: Vector = (0.0, 0.0, 0.0, 0.0)


def plms(schedule: Schedule, intervals: Sequence[Interval], _eta: float) -> list[tuple[Update, ...]]:
    """Adams-Bashforth weights over the network's last four outputs, in the exact step of a constant output.

        x' = S_x x + S_F (w0 F + w1 F1 + w2 F2 + w3 F3)

    (Liu et al. 2022, PNDM, equations 9 and 12, without its Runge-Kutta start.) History is F itself and not D: only then
    are the weights those of the published sampler for every prediction type. The first interval is taken twice. The
    second time is with the mean of the outputs at both its ends, from the x that it began with, which h2 has kept.
    """
    updates = [_first(schedule, intervals[:2])]
    for step, interval in enumerate(intervals[1:], start=1):
        w = _ADAMS_BASHFORTH[min(step, 3)]
        s_x, s_f = _step(interval.start, interval.end, schedule.prediction)
        f_x, f_d = _output(interval.start, schedule.prediction)
        matrix = (
            (s_x + s_f * w[0] * f_x, s_f * w[1], s_f * w[2], s_f * w[3]),
            (f_x, 0.0, 0.0, 0.0),
            (0.0, 1.0, 0.0, 0.0),
            (0.0, 0.0, 1.0, 0.0),
        )
        updates.append((Update(matrix, (s_f * w[0] * f_d, f_d, 0.0, 0.0)),))
    return updates


def _first(schedule: Schedule, intervals: Sequence[Interval]) -> tuple[Update, ...]:
    """The first interval: a step of its own and, where another interval follows, the corrected step in its place."""
    first = intervals[0]
    s_x, s_f = _step(first.start, first.end, schedule.prediction)
    f_x, f_d = _output(first.start, schedule.prediction)
    matrix: Matrix = ((s_x + s_f * f_x, 0.0, 0.0, 0.0), (f_x, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), _NONE)
    own = Update(matrix, (s_f * f_d, f_d, 0.0, 0.0))
    if len(intervals) == 1:
        return (own,)
    second = intervals[1]
    # The published sampler counts the corrected step back from where the second interval starts, which differs from the
    # start of the first where the spacing was rounded.
    start = vp_level(schedule.alphas_cumprod[round(second.c_noise + first.c_noise - first.c_noise_end)])
    s_x, s_f = _step(start, second.start, schedule.prediction)
    f_x, f_d = _output(second.start, schedule.prediction)
    matrix = ((0.5 * s_f * f_x, 0.5 * s_f, s_x, 0.0), (0.0, 1.0, 0.0, 0.0), _NONE, _NONE)
    return own, Update(matrix, (0.5 * s_f * f_d, 0.0, 0.0, 0.0), at=Point(second.c_noise, second.start))


def _step(start: Level, end: Level, prediction: str) -> tuple[float, float]:
    """S_x and S_F of x' = S_x x + S_F F: the first-order step in terms of the output."""
    a, b, _ = exact_step(start, end)
    _, c_skip, c_out = preconditioning(start, prediction)
    return a + b * c_skip, b * c_out


def _output(level: Level, prediction: str) -> tuple[float, float]:
    """F = f_x x + f_d D, the definition of D solved for F."""
    _, c_skip, c_out = preconditioning(level, prediction)
    return -c_skip / c_out, 1.0 / c_out
