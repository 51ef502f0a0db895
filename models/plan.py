"""Plans: a solver run as a table, one line an evaluation, computed once in float64. No torch.

A row's state is y = (x, h1 .. hK). With F the network's guided output, one line of the table is

    D = c_skip x + c_out F(c_in x, c_noise)            y' = A y + b D + s noise        (noise on x only)

D is the estimate of the clean latent (the denoiser of Karras et al. 2022, equation 7). After the last line x is clean.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from models.grids import Interval
from models.guidance import Guidance, Lane
from models.schedule import Level, Schedule, preconditioning
from models.solvers import SOLVERS, Solver
from models.solvers.base import Matrix, Point, Update, Vector

__all__ = ["SOLVERS", "Guidance", "Lane", "Line", "Plan", "Schedule", "Solver", "make_plan", "supported_solvers"]


@dataclass(frozen=True)
class Line:
    """One evaluation of one row."""

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
    lanes: tuple[Lane, ...]
    """F = sum of weight times output. At least one."""
    rescale: float = 0.0
    """phi of guidance rescale (Lin et al. 2024, section 3.4), which acts on F before the update."""


@dataclass(frozen=True)
class Plan:
    """All lines of one row. The state begins as x = init_alpha z + init_sigma noise and h = 0, z an encoded picture.

    Noise comes from one generator a row, in this order: the first x, then one draw for every line with ``draw`` set.
    """

    lines: tuple[Line, ...]
    history: int
    """K, the number of history slots."""
    init_alpha: float
    init_sigma: float

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
            return cls(lines, int(content["history"]), float(content["init_alpha"]), float(content["init_sigma"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a plan: {error!r}") from error


def make_plan(
    schedule: Schedule,
    solver: str,
    steps: int,
    guidance: Guidance,
    *,
    network: str = "unet",
    eta: float = 0.0,
    strength: float = 1.0,
    from_picture: bool = False,
    refiner: tuple[str, float] | None = None,
) -> Plan:
    """The table of ``steps`` steps of ``solver`` on ``schedule``.

    Guidance is told the step within the full plan, so that a level has the same guidance wherever a row began.

    Args:
        schedule: the levels that the model knows.
        solver: a name in ``SOLVERS``.
        steps: intervals between levels; PLMS has one line more, Heun twice as many less one.
        guidance: scale and shape; its frames are those of the clip.
        network: the name that the lines carry.
        eta: share of fresh noise in DDIM.
        strength: share of the steps run from a picture, counted as in the published pipelines, but never none.
        from_picture: begin at the level of the first step that is run, with ``init_alpha`` of the picture. Otherwise
            the row begins as noise.
        refiner: (network, at): steps that begin at timesteps below ``1 - at`` of the training steps run on that network
            (Podell et al. 2023, section 2.5), under conditions of its own, named ``network/positive`` and so on. A
            multistep solver begins anew there: the outputs of one network say nothing about those of another.

    Raises:
        ValueError: unknown solver; a number out of range; or a schedule this solver cannot run on.
    """
    chosen = _solver_for(schedule, solver, steps, eta)
    grid = chosen.grids[schedule.kind](schedule, steps)
    begin = _first_step(schedule, steps, strength, from_picture)
    lines: list[Line] = []
    for name, first, last in _legs(schedule, grid.intervals, begin, network, refiner):
        intervals = grid.intervals[first:last]
        groups = chosen.rule(schedule, intervals, eta if chosen.eta is None else chosen.eta)
        for step, interval, updates in zip(range(first, last), intervals, groups, strict=True):
            lanes = tuple(_renamed(lane, name, network) for lane in guidance.lanes(step, steps))
            rescale = guidance.rescale if len(lanes) > 1 else 0.0
            lines += [_filled(name, schedule, interval, update, lanes, rescale) for update in updates]
    start = grid.intervals[begin].start if from_picture else Level(0.0, grid.init_sigma)
    return Plan(tuple(lines), chosen.history, start.alpha, start.sigma)


def supported_solvers(schedule: Schedule) -> tuple[str, ...]:
    """Names of the solvers that run well on a schedule. PLMS extrapolates raw outputs from the start, where under zero
    terminal SNR they say nothing of the noise: its pictures are broken there, though its table can be made."""
    names = (name for name, solver in SOLVERS.items() if schedule.kind in solver.grids)
    return tuple(name for name in names if name != "plms" or not schedule.zero_snr)


def _solver_for(schedule: Schedule, solver: str, steps: int, eta: float) -> Solver:
    """The solver, if it can run like this."""
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; known: {', '.join(SOLVERS)}")
    if schedule.kind not in SOLVERS[solver].grids:
        known = ", ".join(supported_solvers(schedule))
        raise ValueError(f"solver {solver!r} does not run on a {schedule.kind} schedule; those that do: {known}")
    if not 1 <= steps <= schedule.num_train_timesteps:
        raise ValueError(f"steps must be between 1 and {schedule.num_train_timesteps}, got {steps}")
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be between 0 and 1, got {eta}")
    if eta > 0.0 and SOLVERS[solver].eta is not None:
        raise ValueError(f"solver {solver!r} has no eta; only ddim has")
    return SOLVERS[solver]


def _first_step(schedule: Schedule, steps: int, strength: float, from_picture: bool) -> int:
    """The first step that is run. The published pipelines round the number of steps down, those of flow models up."""
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength must be between 0 and 1, got {strength}")
    if strength < 1.0 and not from_picture:
        raise ValueError(f"strength {strength} is a share of the way from a picture, but this plan begins as noise")
    skipped = int(steps - steps * strength) if schedule.kind == "flow" else steps - int(steps * strength)
    return min(skipped, steps - 1)


def _legs(
    schedule: Schedule, intervals: Sequence[Interval], begin: int, network: str, refiner: tuple[str, float] | None
) -> list[tuple[str, int, int]]:
    """Networks, each with the first step it runs and the first that it does not; none without a step."""
    if refiner is None:
        return [(network, begin, len(intervals))]
    name, at = refiner
    if not 0.0 <= at <= 1.0:
        raise ValueError(f"refiner must take over at a share between 0 and 1, got {at}")
    if schedule.kind == "edm":
        raise ValueError(f"refiner {name!r} takes over at a timestep, and an edm schedule has none")
    timestep = round(schedule.num_train_timesteps * (1.0 - at))
    cut = max(begin, sum(interval.c_noise >= timestep for interval in intervals))
    return [leg for leg in ((network, begin, cut), (name, cut, len(intervals))) if leg[1] < leg[2]]


def _filled(
    network: str, schedule: Schedule, interval: Interval, update: Update, lanes: tuple[Lane, ...], rescale: float
) -> Line:
    c_noise, level = update.at or Point(interval.c_noise, interval.start)
    c_in, c_skip, c_out = preconditioning(level, schedule.prediction)
    solved = (update.a, update.b, update.s, update.draw)
    return Line(network, c_in, c_noise, c_skip, c_out, *solved, *interval.end, lanes, rescale)


def _renamed(lane: Lane, network: str, first: str) -> Lane:
    """A network that takes over has text encoders and sizes of its own, and so conditions of its own."""
    return lane if network == first else replace(lane, condition=f"{network}/{lane.condition}")


def _line(content: dict[str, Any]) -> Line:
    matrix = tuple(tuple(row) for row in content["a"])
    return Line(**{**content, "a": matrix, "b": tuple(content["b"]), "lanes": tuple(map(_lane, content["lanes"]))})


def _lane(content: dict[str, Any]) -> Lane:
    weight = content["weight"]
    return Lane(**{**content, "weight": tuple(weight) if isinstance(weight, list) else weight})
