"""DPM-Solver++ (2M): second order from the estimate of the line before."""

from __future__ import annotations

from collections.abc import Sequence

from models.grids import Interval
from models.schedule import Schedule
from models.solvers.base import Update, exact_step, log_snr


def second_order_multistep(_schedule: Schedule, intervals: Sequence[Interval], eta: float) -> list[tuple[Update, ...]]:
    """DPM-Solver++ (2M) with midpoint differences; history is the D of the line before.

        lambda = log(alpha/sigma)    h = lambda' - lambda    r = (lambda - lambda_before) / h
        x' = a x + b (1 + 1/(2r)) D - b/(2r) D_before + s noise

    with a, b and s of the exact first-order step. eta = 0 is the ODE solver (Lu et al. 2022, DPM-Solver++, algorithm 2)
    with b = alpha' (1 - exp(-h)), eta = 1 the same paper's SDE solver with b = alpha' (1 - exp(-2h)). The first line
    has no history and the last ends at sigma' = 0, where h is infinite: both are first order, b D alone.
    """
    updates: list[tuple[Update, ...]] = []
    before = None
    for interval in intervals:
        a, b, s = exact_step(interval.start, interval.end, eta)
        half_inverse_r = 0.0
        if before is not None and interval.end.sigma > 0.0:
            h = log_snr(interval.end) - log_snr(interval.start)
            half_inverse_r = 0.5 * h / (log_snr(interval.start) - log_snr(before))
        matrix = ((a, -b * half_inverse_r), (0.0, 0.0))
        updates.append((Update(matrix, (b * (1.0 + half_inverse_r), 1.0), s, draw=eta > 0.0),))
        before = interval.start
    return updates
