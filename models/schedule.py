"""Noise schedules: what a published ``scheduler_config.json`` says about a model. No torch.

A state at the level (alpha, sigma) is  x = alpha x0 + sigma eps.  Three scales are in use; abar is the product of
1 - beta up to a training timestep (Ho et al. 2020, equation 4):

    VP (variance preserving):  alpha = sqrt(abar)  sigma = sqrt(1 - abar)
    VE (variance exploding):   alpha = 1           sigma = sqrt((1 - abar) / abar)    (Karras et al. 2022, table 1)
    flow (straight lines):     alpha = 1 - sigma   sigma from 1 to 0                  (Lipman et al. 2023, equation 20)
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

SPACINGS = ("leading", "trailing", "linspace", "authors", "turbo-demo")
"""The published three (Lin et al. 2024, table 2), and the grids of two systems' own samplers: ``authors`` is that of
SDXL, which starts at the last training timestep; ``turbo-demo``, the demonstration of SDXL-Turbo, has the first 1 to 4
of the timesteps 999, 899, 799, 699."""

_FLOW = "FlowMatchEulerDiscreteScheduler"
_LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "DDIMScheduler": {"timestep_spacing": "leading", "clip_sample": True},
    "DPMSolverMultistepScheduler": {},
    "PNDMScheduler": {"timestep_spacing": "leading", "set_alpha_to_one": False, "skip_prk_steps": False},
    "LCMScheduler": {**_LATENT_BETAS, "beta_schedule": "scaled_linear", "timestep_spacing": "leading"},
    "UniPCMultistepScheduler": {},
    "HeunDiscreteScheduler": _LATENT_BETAS,
    _FLOW: {},
}
"""What a class assumes when its config is silent, where it is not what the others assume."""

_ONLY: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None,),
    "beta_schedule": ("linear", "scaled_linear"),
    "clip_sample": (False,),
    "thresholding": (False,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete", "continuous"),
    "final_sigmas_type": ("zero",),
    "variance_type": (None,),
    "lambda_min_clipped": (-math.inf,),
    "use_exponential_sigmas": (False,),
    "use_beta_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "use_dynamic_shifting": (False,),
    "shift_terminal": (None,),
    "invert_sigmas": (False,),
    "stochastic_sampling": (False,),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "solver_type": ("midpoint", "bh2"),
    "solver_order": (2,),
    "predict_x0": (True,),
    "disable_corrector": ([],),
    "solver_p": (None,),
}
"""Options with few supported values. Any other would change the picture, so it is refused and never skipped."""


class Level(NamedTuple):
    """x = alpha x0 + sigma eps."""

    alpha: float
    sigma: float


@dataclass(frozen=True)
class Schedule:
    """The noise schedule a model was trained with and how its authors space the sampling steps."""

    class_name: str
    alphas_cumprod: tuple[float, ...]
    """abar per training timestep; the last is exactly 0 under zero terminal SNR. A flow schedule has none."""
    prediction: str
    """``epsilon``, ``v_prediction`` or ``flow_prediction``: what the network was trained to return."""
    spacing: str
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    """Whether DDIM's last step ends at abar = 1, or at the abar of timestep 0."""
    zero_snr: bool = False
    kind: str = "discrete"
    """``discrete`` (betas), ``edm`` (continuous sigma, Karras et al. 2022) or ``flow``."""
    num_train_timesteps: int = 1000
    karras: bool = False
    """Whether sigma follows equation 5 of Karras et al. 2022 with rho = 7, in the solvers that publish the option."""
    sigma_min: float | None = None
    """The ends of that ramp; None takes them from the betas."""
    sigma_max: float | None = None
    shift: float = 1.0
    """Of a flow schedule: sigma' = shift sigma / (1 + (shift - 1) sigma) (Esser et al. 2024, equation 23)."""
    clean_shift: bool = False
    """Whether a flow schedule's sigmas are 1, (N-1)/N .. 1/N, shifted once. Otherwise they are those of the published
    class of the solver. Euler's shifts its lower end twice: of few steps the last begins next to 0 and does almost
    nothing."""
    sigmas: tuple[float, ...] = ()
    """An own list for a flow schedule, before the shift, for as many steps as it has; empty: none."""
    original_inference_steps: int = 50
    """The steps that a consistency model was distilled on (Luo et al. 2023, section 4.3)."""
    timestep_scaling: float = 10.0
    """Of a consistency model's boundary condition."""

    @classmethod
    def from_config(cls, scheduler_config: Mapping[str, Any]) -> Schedule:
        """Read a published ``scheduler_config.json``. The class it names gives defaults only: any solver may run on it.

        Two options are our own: ``clean_shift`` and ``sigmas`` of a flow schedule, as the fields of those names.

        Raises:
            ValueError: the config asks for something that is not supported; the message names it.
        """
        name = scheduler_config.get("_class_name")
        if name not in _DEFAULTS:
            raise ValueError(f"scheduler class {name!r} is not supported; known: {', '.join(_DEFAULTS)}")
        config = {"timestep_spacing": "linspace", **_DEFAULTS[name], **scheduler_config}
        _refuse_unsupported(config)
        kind = _kind(config)
        known = ("flow_prediction",) if kind == "flow" else ("epsilon", "v_prediction")
        zero_snr = bool(config.get("rescale_betas_zero_snr", False))
        return cls(
            class_name=name,
            alphas_cumprod=() if kind == "flow" else tuple(_alphas_cumprod(config, zero_snr).tolist()),
            prediction=_one_of(config, "prediction_type", known[0], known),
            spacing=_one_of(config, "timestep_spacing", "linspace", SPACINGS),
            steps_offset=int(config.get("steps_offset", 0)),
            set_alpha_to_one=bool(config.get("set_alpha_to_one", True)),
            zero_snr=zero_snr,
            kind=kind,
            num_train_timesteps=int(config.get("num_train_timesteps", 1000)),
            karras=bool(config.get("use_karras_sigmas", False)),
            sigma_min=_positive_or_none(config, "sigma_min"),
            sigma_max=_positive_or_none(config, "sigma_max"),
            shift=_positive_or_none(config, "shift" if name == _FLOW else "flow_shift") or 1.0,
            clean_shift=bool(config.get("clean_shift", False)),
            sigmas=tuple(float(sigma) for sigma in config.get("sigmas", ())),
            original_inference_steps=int(config.get("original_inference_steps", 50)),
            timestep_scaling=float(config.get("timestep_scaling", 10.0)),
        )

    @property
    def capped(self) -> Array:
        """abar per training timestep, never 0: see ``ZERO_SNR_CAP``."""
        abar = np.array(self.alphas_cumprod)
        if self.zero_snr:
            abar[-1] = ZERO_SNR_CAP
        return abar


def preconditioning(level: Level, prediction: str) -> tuple[float, float, float]:
    """c_in, c_skip and c_out at a level, with n = sqrt(alpha^2 + sigma^2) the scale of x (1 in VP scale).

    epsilon (Ho et al. 2020, equation 15)                                        1/n    1/alpha      -sigma/alpha
    v = (alpha eps - sigma x0) / n (Salimans and Ho 2022, section 4)             1/n    alpha/n^2    -sigma/n
    flow = eps - x0 (Esser et al. 2024, equation 13)                             1      1            -sigma
    """
    alpha, sigma = level
    if prediction == "flow_prediction":
        return 1.0, 1.0, -sigma
    n = math.hypot(alpha, sigma)
    if prediction == "v_prediction":
        return 1.0 / n, alpha / n**2, -sigma / n
    if alpha == 0.0:
        raise ValueError("at zero terminal SNR epsilon says nothing about the image; it needs v_prediction")
    return 1.0 / n, 1.0 / alpha, -sigma / alpha


def noise_levels(scheduler_config: Mapping[str, Any]) -> tuple[Level, ...]:
    """The level of every training timestep in VP scale, at which a published scheduler of any class adds noise.

    How the class samples does not matter to that, so its other options are not looked at.

    Raises:
        ValueError: the config describes no noise schedule, or one that is not supported.
    """
    if scheduler_config.get("trained_betas") is not None:
        raise ValueError("scheduler option trained_betas is not supported, only None is")
    abar = _alphas_cumprod(scheduler_config, bool(scheduler_config.get("rescale_betas_zero_snr", False)))
    return tuple(map(Level, np.sqrt(abar).tolist(), np.sqrt(1.0 - abar).tolist()))


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    for key, known in _ONLY.items():
        value = config.get(key)
        if value is not None and value not in known:
            only = " or ".join(repr(option) for option in known)
            raise ValueError(f"scheduler option {key}={value!r} is not supported yet, only {only} is")
    if config["_class_name"] == "PNDMScheduler" and not config["skip_prk_steps"]:
        raise ValueError("scheduler option skip_prk_steps=False is not supported yet, only True is")
    if config["_class_name"] == "UniPCMultistepScheduler" and not config.get("lower_order_final", True):
        raise ValueError("scheduler option lower_order_final=False is not supported yet, only True is")


def _kind(config: Mapping[str, Any]) -> str:
    """``discrete``, ``edm`` or ``flow``; the last two where the config leaves no room for a mixture."""
    karras = bool(config.get("use_karras_sigmas", False))
    if config["_class_name"] == _FLOW or config.get("use_flow_sigmas"):
        if karras:
            raise ValueError("scheduler option use_karras_sigmas=True is not supported on a flow schedule")
        return "flow"
    if config.get("timestep_type") != "continuous":
        return "discrete"
    ends = (config.get("sigma_min"), config.get("sigma_max"))
    if not karras or config.get("prediction_type") != "v_prediction" or None in ends:
        raise ValueError(
            "scheduler option timestep_type='continuous' is supported only with prediction_type='v_prediction', "
            "use_karras_sigmas=True, sigma_min and sigma_max"
        )
    return "edm"


def _alphas_cumprod(config: Mapping[str, Any], zero_snr: bool) -> Array:
    """abar_t = prod_{s <= t} (1 - beta_s)  (Ho et al. 2020, equation 4)."""
    count = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    if count < 2 or not 0.0 < start <= end < 1.0:
        raise ValueError(f"num_train_timesteps {count}, beta_start {start} and beta_end {end} make no noise schedule")
    name = _one_of(config, "beta_schedule", "linear", ("linear", "scaled_linear", "squaredcos_cap_v2"))
    if name == "linear":
        betas = np.linspace(start, end, count)
    elif name == "scaled_linear":
        betas = np.linspace(math.sqrt(start), math.sqrt(end), count) ** 2
    else:
        betas = _cosine_betas(count)
    abar = np.cumprod(1.0 - betas, dtype=np.float64)
    return _rescale_to_zero_terminal_snr(abar) if zero_snr else abar


def _cosine_betas(count: int) -> Array:
    """abar_t = f(t) / f(0), f(t) = cos^2((t + 0.008) / 1.008 pi / 2), each beta at most 0.999 (Nichol and Dhariwal
    2021, equation 17)."""
    f = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2.0) ** 2
    return np.minimum(1.0 - f[1:] / f[:-1], 0.999)


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


def _positive_or_none(config: Mapping[str, Any], key: str) -> float | None:
    value = config.get(key)
    if value is not None and not (math.isfinite(value) and value > 0.0):
        raise ValueError(f"scheduler option {key}={value!r} must be a positive number")
    return None if value is None else float(value)
