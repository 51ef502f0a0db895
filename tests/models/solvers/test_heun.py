"""Heun's method against the published scheduler, and against the algorithm as the paper prints it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from torch import Tensor

from models.plan import Guidance, Schedule, make_plan
from tests.support.samplers import (
    PREDICTIONS,
    SPACINGS,
    SVD,
    config_of,
    difference,
    network,
    our_run,
    start,
    worst_against_published,
    worst_against_shipped,
)


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_equals_the_published_scheduler(prediction: str, spacing: str, karras: bool) -> None:
    """Measured: 7.2e-8, from the fp32 sigmas; as it ships 1.3e-5 (at timestep 0, as Euler)."""
    config = config_of("heun", **PREDICTIONS[prediction], timestep_spacing=spacing, use_karras_sigmas=karras)
    assert worst_against_published("heun", config, (1, 2, 7)) < 1e-6
    assert worst_against_shipped("heun", config, (4,)) < 2e-5


def denoised(x: Tensor, sigma: float) -> Tensor:
    """The network of Stable Video Diffusion, preconditioned as in Karras et al. 2022, table 1, for v-prediction."""
    n = math.hypot(sigma, 1.0)
    return x / n**2 - sigma / n * network(x / n, float(np.float32(math.log(sigma) / 4.0)), period=1.0)


def test_equals_the_algorithm_as_printed_on_the_schedule_of_stable_video_diffusion() -> None:
    """Karras et al. 2022, algorithm 1 without churn and equation 5."""
    steps = 9
    plan = make_plan(Schedule.from_config(SVD), "heun", steps, Guidance())
    ours = our_run(plan, evaluate=lambda x, c: network(x, c, period=1.0))[0]
    ramp = np.linspace(700.0 ** (1 / 7), 0.002 ** (1 / 7), steps) ** 7
    x = start(plan)[0][:, 0]
    for i, (sigma, after) in enumerate(zip(ramp.tolist(), (*ramp[1:].tolist(), 0.0), strict=True)):
        slope = (x - denoised(x, sigma)) / sigma
        euler = x + (after - sigma) * slope
        assert difference(ours[2 * i], euler) < 1e-8
        x = euler if after == 0.0 else x + (after - sigma) * 0.5 * (slope + (euler - denoised(euler, after)) / after)
        assert difference(ours[min(2 * i + 1, 2 * steps - 2)], x) < 1e-8
    assert len(ours) == 2 * steps - 1


def test_vp_scale_under_zero_terminal_snr_is_the_same_run() -> None:
    """The published Heun has no such option. Where timestep 999 is not visited, only the scale of x differs."""
    schedule = Schedule.from_config(config_of("heun", prediction_type="v_prediction"))
    capped = make_plan(replace(schedule, zero_snr=True), "heun", 8, Guidance())
    in_vp, in_ve = our_run(capped)[0], our_run(make_plan(schedule, "heun", 8, Guidance()))[0]
    for line, vp, ve in zip(capped.lines, in_vp, in_ve, strict=True):
        assert difference(vp, line.alpha * ve) < 1e-12
    assert difference(in_vp[5], in_ve[5]) > 1e-3


def test_comparison_sees_the_second_evaluation() -> None:
    schedule = Schedule.from_config(config_of("heun"))
    heun, euler = (our_run(make_plan(schedule, name, 15, Guidance()))[0] for name in ("heun", "euler"))
    assert difference(heun[0], euler[0]) < 1e-12
    assert difference(heun[-1], euler[-1]) > 1e-3
