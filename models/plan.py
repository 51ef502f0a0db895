"""Plans: a solver run as a table, one line a step, computed once in float64. No torch.

A row's state is y = (x, h1 .. hK). With F the network's guided output, one line of the table is

    D = c_skip x + c_out F(c_in x, c_noise)            y' = A y + b D + s noise        (noise on x only)

D is the estimate of the clean latent (the denoiser of Karras et al. 2022, equation 7). After the last line x is clean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from models.guidance import lane_weights
from models.schedule import Grid, Interval, Level, Schedule, ddim_grid, dpm_grid, euler_grid

__all__ = ["SOLVERS", "Line", "Plan", "Schedule", "Solver", "make_plan"]

Vector = tuple[float, ...]
Matrix = tuple[Vector, ...]


@dataclass(frozen=True)
class Line:
    """One step of one row."""

    network: str
    c_in: float
    c_noise: float
    c_skip: float
    c_out: float
    a: Matrix
    """[K+1, K+1], on (x, h1 .. hK)."""
    b: Vector
    """[K+1], on D."""
    s: float
    draw: bool
    """Whether one noise is drawn for this line. It can be true with s = 0: the published solvers draw there too."""
    alpha: float
    sigma: float
    """After the line x = alpha x0 + sigma eps."""
    lanes: Vector
    """Weights of the (negative, positive) lanes, or of (positive,) alone."""


@dataclass(frozen=True)
class Plan:
    """All steps of one row. The state begins as x = init_scale * noise and h = 0.

    Noise comes from one generator a row, in this order: the first x, then one draw for every line with ``draw`` set.
    """

    lines: tuple[Line, ...]
    history: int
    """K, the number of history slots."""
    init_scale: float

    @property
    def draws(self) -> int:
        """Noises drawn by the lines; the first x is one more."""
        return sum(line.draw for line in self.lines)

    def to_json(self) -> str:
        """JSON text from which ``from_json`` makes an equal plan: Python writes the shortest digits that read back."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that ``to_json`` wrote.

        Raises:
            ValueError: the text is not JSON or not a plan.
        """
        try:
            content = json.loads(text)
            lines = tuple(_line(line) for line in content["lines"])
            return cls(lines, int(content["history"]), float(content["init_scale"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a plan: {error!r}") from error


class Update(NamedTuple):
    """The part of a line that belongs to the solver: y' = a y + b D + s noise."""

    a: Matrix
    b: Vector
    s: float = 0.0
    draw: bool = False


@dataclass(frozen=True)
class Solver:
    """How a solver fills a table: the levels it visits, and its updates between them."""

    grid: Callable[[Schedule, int], Grid]
    updates: Callable[[Sequence[Interval], float], list[Update]]
    history: int = 0
    eta: float | None = 0.0
    """Share of fresh noise in a step, from 0 (none) to 1 (ancestral sampling). None: the caller chooses."""


def first_order(intervals: Sequence[Interval], eta: float) -> list[Update]:
    """The exact solution for constant D, with a share of the noise replaced by fresh noise.

        q = sigma' alpha / (sigma alpha')       s = eta sigma' sqrt(1 - q^2)
        a = sqrt(sigma'^2 - s^2) / sigma        b = alpha' - a alpha

    In VP scale this is DDIM (Song et al. 2021, equations 12 and 16). In VE scale it is Euler (Karras et al. 2022,
    algorithm 1, first order) for eta = 0, and Euler-ancestral for eta = 1, with s = sigma_up and a = sigma_down/sigma.
    """
    updates = []
    for _, (alpha, sigma), (alpha_next, sigma_next) in intervals:
        q = sigma_next * alpha / (sigma * alpha_next)
        s = eta * sigma_next * math.sqrt(1.0 - q**2)
        # sqrt(sigma'^2 - s^2) without the difference: at zero terminal SNR and eta = 1 it is 0, and rounding decides.
        a = sigma_next / sigma * math.hypot(math.sqrt(1.0 - eta**2), eta * q)
        updates.append(Update(((a,),), (alpha_next - a * alpha,), s, draw=eta > 0.0))
    return updates


def second_order_multistep(intervals: Sequence[Interval], _eta: float) -> list[Update]:
    """DPM-Solver++ (2M) with midpoint differences; history is the D of the line before.

        lambda = log(alpha/sigma)    h = lambda' - lambda    r = (lambda - lambda_before) / h
        B = alpha' (1 - exp(-h)) = alpha' - alpha sigma'/sigma
        x' = sigma'/sigma x + B (1 + 1/(2r)) D - B/(2r) D_before

    (Lu et al. 2022, DPM-Solver++, algorithm 2.) The first line has no history and the last ends at sigma' = 0, where h
    is infinite: both are first order, B D alone.
    """
    updates = []
    lambda_before = None
    for _, (alpha, sigma), (alpha_next, sigma_next) in intervals:
        a = sigma_next / sigma
        b = alpha_next - alpha * a
        lambda_now = math.log(alpha / sigma)
        half_inverse_r = 0.0
        if lambda_before is not None and sigma_next > 0.0:
            h = math.log(alpha_next / sigma_next) - lambda_now
            half_inverse_r = 0.5 * h / (lambda_now - lambda_before)
        updates.append(Update(((a, -b * half_inverse_r), (0.0, 0.0)), (b * (1.0 + half_inverse_r), 1.0)))
        lambda_before = lambda_now
    return updates


SOLVERS: dict[str, Solver] = {
    "euler": Solver(euler_grid, first_order),
    "euler-ancestral": Solver(euler_grid, first_order, eta=1.0),
    "ddim": Solver(ddim_grid, first_order, eta=None),
    "dpm++2m": Solver(dpm_grid, second_order_multistep, history=1),
}


def make_plan(
    schedule: Schedule, solver: str, steps: int, guidance: float, network: str = "unet", eta: float = 0.0
) -> Plan:
    """The table of ``steps`` steps of ``solver`` on ``schedule``, at one guidance scale.

    Raises:
        ValueError: unknown solver; steps, eta or guidance out of range; or a schedule this solver cannot run on.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; known: {', '.join(SOLVERS)}")
    if not 1 <= steps <= schedule.num_train_timesteps:
        raise ValueError(f"steps must be between 1 and {schedule.num_train_timesteps}, got {steps}")
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be between 0 and 1, got {eta}")
    chosen = SOLVERS[solver]
    if eta > 0.0 and chosen.eta is not None:
        raise ValueError(f"solver {solver!r} has no eta; only ddim has")
    grid = chosen.grid(schedule, steps)
    updates = chosen.updates(grid.intervals, eta if chosen.eta is None else chosen.eta)
    lanes = lane_weights(guidance)
    lines = []
    for interval, update in zip(grid.intervals, updates, strict=True):
        c_in, c_skip, c_out = preconditioning(interval.start, schedule.prediction)
        lines.append(Line(network, c_in, interval.c_noise, c_skip, c_out, *update, *interval.end, lanes))
    return Plan(tuple(lines), chosen.history, grid.init_scale)


def preconditioning(level: Level, prediction: str) -> tuple[float, float, float]:
    """c_in, c_skip and c_out at a level, with n = sqrt(alpha^2 + sigma^2) the scale of x (1 in VP scale).

    epsilon (Ho et al. 2020, equation 15)                                        1/n    1/alpha      -sigma/alpha
    v = (alpha eps - sigma x0) / n (Salimans and Ho 2022, section 4)             1/n    alpha/n^2    -sigma/n
    """
    alpha, sigma = level
    n = math.hypot(alpha, sigma)
    if prediction == "v_prediction":
        return 1.0 / n, alpha / n**2, -sigma / n
    if alpha == 0.0:
        raise ValueError("at zero terminal SNR epsilon says nothing about the image; it needs v_prediction")
    return 1.0 / n, 1.0 / alpha, -sigma / alpha


def _line(content: dict[str, Any]) -> Line:
    matrix = tuple(tuple(row) for row in content["a"])
    return Line(**{**content, "a": matrix, "b": tuple(content["b"]), "lanes": tuple(content["lanes"])})
