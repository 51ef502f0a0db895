"""Schedules read from published configs: their tables, their defaults, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)

from models.schedule import ZERO_SNR_CAP, Schedule, ddim_grid, euler_grid

CONFIG: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
DDIM: Any = DDIMScheduler
CLASSES: list[Any] = [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, DDIM, DPMSolverMultistepScheduler]

# The published schedulers hand tensors to numpy in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
def test_alphas_cumprod_equal_the_published(beta_schedule: str, zero_snr: bool) -> None:
    """Theirs are a product of 1000 fp32 factors, so they agree to fp32 alone."""
    options = {"beta_schedule": beta_schedule, "rescale_betas_zero_snr": zero_snr}
    published = DDIM(beta_start=0.00085, beta_end=0.012, **options).alphas_cumprod
    schedule = Schedule.from_config({**CONFIG, **options})
    assert schedule.num_train_timesteps == 1000
    assert schedule.alphas_cumprod == pytest.approx(published.tolist(), abs=1e-5)
    assert (schedule.alphas_cumprod[-1] == 0.0) == zero_snr
    assert (schedule.capped[-1] == ZERO_SNR_CAP) == zero_snr


@pytest.mark.parametrize("published", CLASSES)
def test_defaults_are_those_of_the_class(published: Any) -> None:
    theirs = published()
    ours = Schedule.from_config({"_class_name": published.__name__, "clip_sample": False})
    assert ours.spacing == theirs.config.timestep_spacing
    assert ours.prediction == theirs.config.prediction_type
    assert ours.steps_offset == theirs.config.steps_offset
    assert ours.alphas_cumprod == pytest.approx(theirs.alphas_cumprod.tolist(), abs=1e-5)


def test_zero_terminal_snr_changes_the_scale_and_not_the_ratio() -> None:
    """sigma/alpha is the same number in VE and VP scale."""
    options = {**CONFIG, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    ordinary = euler_grid(Schedule.from_config(options), 5)
    assert all(interval.start.alpha == 1.0 for interval in ordinary.intervals)
    capped = euler_grid(Schedule.from_config({**options, "rescale_betas_zero_snr": True}), 5)
    for interval in capped.intervals:
        assert math.hypot(*interval.start) == pytest.approx(1.0, rel=1e-15)
    first = capped.intervals[0].start
    assert first.sigma / first.alpha == pytest.approx(4096.0, rel=1e-7)


def test_trailing_has_as_many_steps_as_asked_for() -> None:
    """61 is one of 62 counts for which the published expression yields a step more, at timestep -1."""
    intervals = euler_grid(Schedule.from_config({**CONFIG, "timestep_spacing": "trailing"}), 61).intervals
    assert len(intervals) == 61 and intervals[-1].c_noise == 15.0


def test_set_alpha_to_one_decides_where_ddim_ends() -> None:
    schedules = [Schedule.from_config({**CONFIG, "set_alpha_to_one": value}) for value in (True, False)]
    ends = [ddim_grid(schedule, 10).intervals[-1].end.alpha ** 2 for schedule in schedules]
    assert ends == pytest.approx([1.0, schedules[1].alphas_cumprod[0]], rel=1e-15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"_class_name": "HeunDiscreteScheduler"}, "HeunDiscreteScheduler.*EulerDiscreteScheduler"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas=True is not supported yet"),
        ({"clip_sample": True}, "clip_sample=True"),
        ({"_class_name": "DDIMScheduler"}, "clip_sample=True"),
        ({"thresholding": True}, "thresholding"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
        ({"prediction_type": "sample"}, "prediction_type='sample'.*epsilon, v_prediction"),
        ({"timestep_spacing": "even"}, "timestep_spacing"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule"),
        ({"beta_start": 0.0}, "beta_start 0.0"),
    ],
)
def test_config_that_is_not_supported_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.from_config({**CONFIG, **options})
