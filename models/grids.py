"""Grids: the noise levels that a number of steps visits on a schedule. No torch.

One function for each way in which the published samplers choose their levels. Networks receive ``c_noise`` in fp32, so
it is rounded to fp32 here, and a level that is looked up by it belongs to the rounded number.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from models.schedule import Array, Level, Schedule

__all__ = [
    "Grid",
    "Interval",
    "ancestral_grid",
    "ddim_grid",
    "dpm_grid",
    "edm_grid",
    "euler_grid",
    "flow_dpm_grid",
    "flow_grid",
    "lcm_grid",
    "vp_level",
]

_RHO = 7.0
_COUNTS_X0 = ("leading", "authors", "turbo-demo")
_DEMO_STRIDE, _DEMO_STEPS = 100, 4


class Interval(NamedTuple):
    """One step of a solver: the network sees ``c_noise`` at the level ``start``; the step ends at the level ``end``."""

    c_noise: float
    start: Level
    end: Level
    c_noise_end: float = 0.0
    """What a network that is evaluated at ``end`` sees."""


class Grid(NamedTuple):
    """All steps of a solver. A state of pure noise begins as ``init_sigma`` times unit noise."""

    init_sigma: float
    intervals: tuple[Interval, ...]


def euler_grid(schedule: Schedule, steps: int) -> Grid:
    """VE levels with sigma interpolated between training timesteps (Karras et al. 2022, section 2), or on their ramp.

    Under zero terminal SNR the first sigma is 4096, too large to mix with an image in fp32: same levels, VP scale.
    """
    table = _sigma_table(schedule)
    timesteps = _fp32(_timesteps(schedule, steps))
    sigmas: Array = np.interp(timesteps, np.arange(len(table)), table)
    if schedule.karras:
        sigmas = _karras(schedule, float(sigmas[-1]), float(sigmas[0]), steps)
        timesteps = _fp32(_timestep_of(sigmas, table))
    ends = [_vp_of_sigma(s) if schedule.zero_snr else Level(1.0, s) for s in (*sigmas.tolist(), 0.0)]
    return Grid(_init_sigma(schedule, ends[0]), _intervals(timesteps, ends))


def ancestral_grid(schedule: Schedule, steps: int) -> Grid:
    """As :func:`euler_grid` without the ramp, which the published ancestral sampler does not know."""
    return euler_grid(replace(schedule, karras=False), steps)


def edm_grid(schedule: Schedule, steps: int) -> Grid:
    """VE levels on the ramp from sigma_max to sigma_min, with c_noise = log(sigma)/4 (Karras et al. 2022, table 1)."""
    assert schedule.sigma_min is not None and schedule.sigma_max is not None, schedule
    sigmas = _karras(schedule, schedule.sigma_min, schedule.sigma_max, steps)
    ends = [Level(1.0, sigma) for sigma in (*sigmas.tolist(), 0.0)]
    return Grid(_init_sigma(schedule, ends[0]), _intervals(_fp32(np.log(sigmas) / 4.0), ends))


def ddim_grid(schedule: Schedule, steps: int) -> Grid:
    """VP levels; each step ends ``num_train_timesteps // steps`` below its start, wherever the next one begins.

    (Song et al. 2021, equation 12. With trailing and linspace the end of a step and the start of the next can differ;
    the published implementation has it so, and models are judged by its pictures. Its own three spacings only: in the
    others each step ends where the next begins.)
    """
    abar = schedule.alphas_cumprod
    final = 1.0 if schedule.set_alpha_to_one else abar[0]
    timesteps = [round(t) for t in _timesteps(schedule, steps).round().tolist()]
    stride = len(abar) // steps
    own = schedule.spacing in ("leading", "trailing", "linspace")
    ends = [t - stride for t in timesteps] if own else [*timesteps[1:], -1]
    return Grid(
        1.0,
        tuple(
            Interval(float(t), vp_level(abar[t]), vp_level(abar[end] if end >= 0 else final), float(max(end, 0)))
            for t, end in zip(timesteps, ends, strict=True)
        ),
    )


def dpm_grid(schedule: Schedule, steps: int) -> Grid:
    """VP levels at whole timesteps; leading and linspace divide into one more part and leave the lowest out.

    (Lu et al. 2022, DPM-Solver++, section 4, with the spacing of its published implementation; or on the ramp of Karras
    et al. over all of the training noise, where c_noise is the nearest timestep.)
    """
    if schedule.karras:
        table = _sigma_table(schedule)
        sigmas = _karras(schedule, float(table[0]), float(table[-1]), steps)
        ends = [_vp_of_sigma(sigma) for sigma in (*sigmas.tolist(), 0.0)]
        return Grid(1.0, _intervals(_timestep_of(sigmas, table).round(), ends))
    abar = schedule.capped
    timesteps = _timesteps(schedule, steps, left_out=1).round()
    if len(set(timesteps.tolist())) < steps:
        raise ValueError(f"{steps} steps of {schedule.spacing} spacing visit a timestep twice; use fewer steps")
    ends = [vp_level(float(abar[round(t)])) for t in timesteps.tolist()] + [Level(1.0, 0.0)]
    return Grid(1.0, _intervals(timesteps, ends))


def lcm_grid(schedule: Schedule, steps: int) -> Grid:
    """VP levels, picked evenly among the timesteps that a consistency model was distilled on (Luo et al. 2023, 4.3)."""
    original = schedule.original_inference_steps
    if steps > original:
        raise ValueError(f"steps must be at most the {original} that the model was distilled on, got {steps}")
    stride = schedule.num_train_timesteps // original
    distilled = np.arange(original, 0, -1) * stride - 1
    timesteps = distilled[np.linspace(0, original, steps, endpoint=False).astype(int)]
    ends = [vp_level(schedule.alphas_cumprod[t]) for t in timesteps.tolist()] + [Level(1.0, 0.0)]
    return Grid(1.0, _intervals(timesteps.astype(np.float64), ends))


def flow_grid(schedule: Schedule, steps: int) -> Grid:
    """Flow levels of the published Euler sampler, of an own list, or of the clean table; c_noise = 1000 sigma."""
    if schedule.sigmas:
        sigmas = _own_sigmas(schedule, steps)
    elif schedule.clean_shift:
        sigmas = np.linspace(1.0, 1.0 / steps, steps)
    else:
        lowest = np.array([1.0 / schedule.num_train_timesteps])
        sigmas = np.linspace(1.0, float(_shifted(schedule, lowest)[0]), steps)
    sigmas = _shifted(schedule, sigmas)
    return _flow(sigmas, _fp32(sigmas * schedule.num_train_timesteps))


def flow_dpm_grid(schedule: Schedule, steps: int) -> Grid:
    """Flow levels of the published DPM-Solver++: sigma from just below 1, and c_noise cut to whole numbers.

    An own list and the clean table are as in :func:`flow_grid`.
    """
    if schedule.sigmas or schedule.clean_shift:
        return flow_grid(schedule, steps)
    rising = 1.0 - np.linspace(1.0, 1.0 / schedule.num_train_timesteps, steps + 1)
    sigmas = _shifted(schedule, rising)[:0:-1]
    return _flow(sigmas, np.floor(sigmas * schedule.num_train_timesteps))


def vp_level(abar: float) -> Level:
    """The level of a training timestep with this abar, in VP scale."""
    return Level(math.sqrt(abar), math.sqrt(1.0 - abar))


def _timesteps(schedule: Schedule, steps: int, left_out: int = 0) -> Array:
    """The training timesteps that ``steps`` steps visit, falling (Lin et al. 2024, table 2)."""
    count = schedule.num_train_timesteps
    points = steps + left_out
    if schedule.spacing == "linspace":
        timesteps: Array = np.linspace(0, count - 1, points)[::-1]
    elif schedule.spacing == "leading":
        timesteps = np.arange(points, dtype=np.float64)[::-1] * (count // points) + schedule.steps_offset
    elif schedule.spacing == "authors":
        timesteps = np.floor(np.linspace(count - 1, 0, steps, endpoint=False))
    elif schedule.spacing == "turbo-demo":
        if steps > _DEMO_STEPS:
            raise ValueError(f"turbo-demo spacing has at most {_DEMO_STEPS} steps, got {steps}")
        timesteps = count - 1.0 - _DEMO_STRIDE * np.arange(steps, dtype=np.float64)
    else:
        # Rounding inside arange decides halves, so the expression is the published one. It also gives some counts (61
        # of 1000) one point too many, at -1: cut.
        timesteps = np.arange(count, 0, -count / steps).round() - 1.0
    timesteps = timesteps[:steps]
    if timesteps[0] > count - 1 or timesteps[-1] < 0:
        raise ValueError(f"{steps} steps with steps_offset {schedule.steps_offset} leave timesteps 0 .. {count - 1}")
    return timesteps


def _intervals(c_noise: Array, ends: list[Level]) -> tuple[Interval, ...]:
    """Intervals that follow each other; ``ends`` has one level more than ``c_noise`` has values."""
    starts = c_noise.tolist()
    return tuple(Interval(*row) for row in zip(starts, ends[:-1], ends[1:], [*starts[1:], 0.0], strict=True))


def _init_sigma(schedule: Schedule, first: Level) -> float:
    """The noise to begin with.

    At the start of ``leading`` x still holds some x0, so the noise stands in for all of alpha x0 + sigma eps, with x0
    of unit variance; the authors' own samplers count it everywhere. linspace and trailing begin with sigma eps alone.
    """
    return math.hypot(first.alpha, first.sigma) if schedule.spacing in _COUNTS_X0 else first.sigma


def _sigma_table(schedule: Schedule) -> Array:
    """sigma in VE scale per training timestep."""
    abar = schedule.capped
    table: Array = np.sqrt((1.0 - abar) / abar)
    return table


def _karras(schedule: Schedule, sigma_min: float, sigma_max: float, steps: int) -> Array:
    """sigma falling evenly in sigma^(1/rho) (Karras et al. 2022, equation 5), between the schedule's ends or these."""
    ends = (schedule.sigma_max or sigma_max, schedule.sigma_min or sigma_min)
    high, low = (end ** (1.0 / _RHO) for end in ends)
    ramp: Array = (high + np.linspace(0.0, 1.0, steps) * (low - high)) ** _RHO
    return ramp


def _timestep_of(sigmas: Array, table: Array) -> Array:
    """The fractional training timestep of each sigma, linear in log sigma; sigmas beyond the table get its ends."""
    timesteps: Array = np.interp(np.log(sigmas), np.log(table), np.arange(len(table), dtype=np.float64))
    return timesteps


def _own_sigmas(schedule: Schedule, steps: int) -> Array:
    sigmas = schedule.sigmas
    if len(sigmas) != steps:
        raise ValueError(f"the schedule's own sigmas are for {len(sigmas)} steps, got {steps}")
    if any(later >= sooner for sooner, later in zip((1.0 + 1e-9, *sigmas), (*sigmas, 0.0), strict=True)):
        raise ValueError(f"sigmas of a flow schedule must fall from at most 1 and stay above 0, got {sigmas}")
    return np.array(sigmas)


def _shifted(schedule: Schedule, sigmas: Array) -> Array:
    """More of the steps at high noise for larger pictures (Esser et al. 2024, equation 23)."""
    shifted: Array = schedule.shift * sigmas / (1.0 + (schedule.shift - 1.0) * sigmas)
    return shifted


def _flow(sigmas: Array, c_noise: Array) -> Grid:
    ends = [Level(1.0 - sigma, sigma) for sigma in (*sigmas.tolist(), 0.0)]
    return Grid(1.0, _intervals(c_noise, ends))


def _fp32(values: Array) -> Array:
    return values.astype(np.float32).astype(np.float64)


def _vp_of_sigma(sigma: float) -> Level:
    alpha = 1.0 / math.hypot(sigma, 1.0)
    return Level(alpha, sigma * alpha)
