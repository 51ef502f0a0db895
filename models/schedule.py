"""Noise schedules: what a published ``scheduler_config.json`` says, and the noise levels a solver visits. No torch.

A state at the level (alpha, sigma) is  x = alpha x0 + sigma eps.  Two scales of the same state are in use; abar is the
product of 1 - beta up to a timestep (Ho et al. 2020, equation 4):

    VP (variance preserving):  alpha = sqrt(abar)  sigma = sqrt(1 - abar)
    VE (variance exploding):   alpha = 1           sigma = sqrt((1 - abar) / abar)    (Karras et al. 2022, table 1)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ZERO_SNR_CAP = 2.0**-24
"""abar of the last training timestep under zero terminal SNR, for solvers that work in sigma or log-SNR: those are
infinite at abar = 0. It is the cap of the published schedulers, so a model sees the same numbers here as there."""

_DEFAULT_SPACING = {
    "EulerDiscreteScheduler": "linspace",
    "EulerAncestralDiscreteScheduler": "linspace",
    "DDIMScheduler": "leading",
    "DPMSolverMultistepScheduler": "linspace",
}
_ONLY = {
    "trained_betas": None,
    "clip_sample": False,
    "thresholding": False,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
    "final_sigmas_type": "zero",
    "variance_type": None,
    "lambda_min_clipped": -math.inf,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "solver_order": 2,
}
"""Options with one supported value. Any other would change the picture, so it is refused and never skipped."""


class Level(NamedTuple):
    """x = alpha x0 + sigma eps."""

    alpha: float
    sigma: float


class Interval(NamedTuple):
    """One step of a solver: the network sees ``c_noise`` at the level ``start``; the step ends at the level ``end``."""

    c_noise: float
    start: Level
    end: Level


class Grid(NamedTuple):
    """All steps of a solver. The state begins as ``init_scale`` times unit noise."""

    init_scale: float
    intervals: tuple[Interval, ...]


@dataclass(frozen=True)
class Schedule:
    """The noise schedule a model was trained with and how its authors space the sampling steps."""

    class_name: str
    alphas_cumprod: tuple[float, ...]
    """abar per training timestep; the last is exactly 0 under zero terminal SNR."""
    prediction: str
    spacing: str
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    """Whether DDIM's last step ends at abar = 1, or at the abar of timestep 0."""
    zero_snr: bool = False

    @classmethod
    def from_config(cls, scheduler_config: Mapping[str, Any]) -> Schedule:
        """Read a published ``scheduler_config.json``. The class it names gives defaults only: any solver may run on it.

        Raises:
            ValueError: the config asks for something that is not supported; the message names it.
        """
        name = scheduler_config.get("_class_name")
        if name not in _DEFAULT_SPACING:
            raise ValueError(f"scheduler class {name!r} is not supported; known: {', '.join(_DEFAULT_SPACING)}")
        # DDIM alone clips when its config is silent.
        config = {"clip_sample": name == "DDIMScheduler", **scheduler_config}
        for key, only in _ONLY.items():
            if config.get(key) not in (only, None):
                raise ValueError(f"scheduler option {key}={config[key]!r} is not supported yet, only {only!r} is")
        zero_snr = bool(config.get("rescale_betas_zero_snr", False))
        return cls(
            class_name=name,
            alphas_cumprod=tuple(_alphas_cumprod(config, zero_snr).tolist()),
            prediction=_one_of(config, "prediction_type", "epsilon", ("epsilon", "v_prediction")),
            spacing=_one_of(config, "timestep_spacing", _DEFAULT_SPACING[name], ("leading", "trailing", "linspace")),
            steps_offset=int(config.get("steps_offset", 0)),
            set_alpha_to_one=bool(config.get("set_alpha_to_one", True)),
            zero_snr=zero_snr,
        )

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def capped(self) -> Array:
        """abar per training timestep, never 0: see ``ZERO_SNR_CAP``."""
        abar = np.array(self.alphas_cumprod)
        if self.zero_snr:
            abar[-1] = ZERO_SNR_CAP
        return abar


def euler_grid(schedule: Schedule, steps: int) -> Grid:
    """VE levels with sigma interpolated between training timesteps (Karras et al. 2022, section 2).

    Under zero terminal SNR the first sigma is 4096, too large to mix with an image in fp32: same levels, VP scale.
    """
    abar = schedule.capped
    # linspace gives fractional timesteps. The network receives them as fp32, so sigma belongs to the rounded number.
    timesteps = _timesteps(schedule, steps).astype(np.float32).astype(np.float64)
    sigmas = np.interp(timesteps, np.arange(len(abar)), np.sqrt((1.0 - abar) / abar))
    ends = [_vp_of_sigma(s) if schedule.zero_snr else Level(1.0, s) for s in (*sigmas.tolist(), 0.0)]
    # leading begins below the last training timestep, where x still holds some x0, so the noise stands in for all of
    # alpha x0 + sigma eps, with x0 of unit variance. linspace and trailing begin with sigma eps alone.
    first = ends[0]
    init_scale = math.hypot(first.alpha, first.sigma) if schedule.spacing == "leading" else first.sigma
    return Grid(init_scale, _intervals(timesteps, ends))


def ddim_grid(schedule: Schedule, steps: int) -> Grid:
    """VP levels; each step ends ``num_train_timesteps // steps`` below its start, wherever the next one begins.

    (Song et al. 2021, equation 12. With trailing and linspace the end of a step and the start of the next can differ;
    the published implementation has it so, and models are judged by its pictures.)
    """
    abar = schedule.alphas_cumprod
    final = 1.0 if schedule.set_alpha_to_one else abar[0]
    stride = len(abar) // steps
    timesteps = [round(t) for t in _timesteps(schedule, steps).round().tolist()]
    return Grid(
        1.0,
        tuple(Interval(float(t), _vp(abar[t]), _vp(abar[t - stride] if t >= stride else final)) for t in timesteps),
    )


def dpm_grid(schedule: Schedule, steps: int) -> Grid:
    """VP levels at whole timesteps; leading and linspace divide into one more part and leave the lowest out.

    (Lu et al. 2022, DPM-Solver++, section 4, with the spacing of its published implementation.)
    """
    abar = schedule.capped
    timesteps = _timesteps(schedule, steps, left_out=1).round()
    if len(set(timesteps.tolist())) < steps:
        raise ValueError(f"{steps} steps of {schedule.spacing} spacing visit a timestep twice; use fewer steps")
    ends = [_vp(float(abar[round(t)])) for t in timesteps.tolist()] + [Level(1.0, 0.0)]
    return Grid(1.0, _intervals(timesteps, ends))


def _timesteps(schedule: Schedule, steps: int, left_out: int = 0) -> Array:
    """The training timesteps that ``steps`` steps visit, falling (Lin et al. 2024, table 2)."""
    count = schedule.num_train_timesteps
    points = steps + left_out
    if schedule.spacing == "linspace":
        timesteps = np.linspace(0, count - 1, points)[::-1]
    elif schedule.spacing == "leading":
        timesteps = np.arange(points, dtype=np.float64)[::-1] * (count // points) + schedule.steps_offset
    else:
        # Rounding inside arange decides halves, so the expression is the published one. It also gives some counts (61
        # of 1000) one point too many, at -1: cut.
        timesteps = np.arange(count, 0, -count / steps).round() - 1.0
    timesteps = timesteps[:steps]
    if timesteps[0] > count - 1 or timesteps[-1] < 0:
        raise ValueError(f"{steps} steps with steps_offset {schedule.steps_offset} leave timesteps 0 .. {count - 1}")
    return timesteps


def _intervals(timesteps: Array, ends: list[Level]) -> tuple[Interval, ...]:
    return tuple(Interval(t, *pair) for t, *pair in zip(timesteps.tolist(), ends[:-1], ends[1:], strict=True))


def _vp(abar: float) -> Level:
    return Level(math.sqrt(abar), math.sqrt(1.0 - abar))


def _vp_of_sigma(sigma: float) -> Level:
    alpha = 1.0 / math.hypot(sigma, 1.0)
    return Level(alpha, sigma * alpha)


def _alphas_cumprod(config: Mapping[str, Any], zero_snr: bool) -> Array:
    """abar_t = prod_{s <= t} (1 - beta_s)  (Ho et al. 2020, equation 4)."""
    count = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    if count < 2 or not 0.0 < start <= end < 1.0:
        raise ValueError(f"num_train_timesteps {count}, beta_start {start} and beta_end {end} make no noise schedule")
    if _one_of(config, "beta_schedule", "linear", ("linear", "scaled_linear")) == "linear":
        betas = np.linspace(start, end, count)
    else:
        betas = np.linspace(math.sqrt(start), math.sqrt(end), count) ** 2
    abar = np.cumprod(1.0 - betas, dtype=np.float64)
    return _rescale_to_zero_terminal_snr(abar) if zero_snr else abar


def _rescale_to_zero_terminal_snr(abar: Array) -> Array:
    """sqrt(abar) shifted so that the last is 0 and scaled so that the first stays (Lin et al. 2024, algorithm 1)."""
    root = np.sqrt(abar)
    rescaled: Array = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    return rescaled


def _one_of(config: Mapping[str, Any], key: str, default: str, known: tuple[str, ...]) -> str:
    value = config.get(key, default)
    if value not in known:
        raise ValueError(f"scheduler option {key}={value!r} is not supported; known: {', '.join(known)}")
    return str(value)
