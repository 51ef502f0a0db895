"""Consistency sampling against the published scheduler."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.plan import Guidance, Schedule, make_plan
from tests.support.samplers import (
    PREDICTIONS,
    config_of,
    difference,
    our_run,
    worst_against_published,
    worst_against_shipped,
)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_equals_the_published_scheduler(prediction: str) -> None:
    """Measured: 1.6e-7, from the scheduler's fp32 timesteps in the boundary condition; as it ships 1.3e-6."""
    config = config_of("lcm", **PREDICTIONS[prediction])
    assert worst_against_published("lcm", config, (1, 2, 3, 7, 50)) < 1e-6
    assert worst_against_shipped("lcm", config, (1, 4, 8)) < 2e-5


def test_other_distillation_grids() -> None:
    config = config_of("lcm", original_inference_steps=40, timestep_scaling=0.5)
    assert worst_against_published("lcm", config, (1, 4, 9)) < 1e-6
    schedule = Schedule.from_config(config)
    ours, default = (
        our_run(make_plan(s, "lcm", 4, Guidance()))[0] for s in (schedule, Schedule.from_config(config_of("lcm")))
    )
    assert difference(ours[0], default[0]) > 1e-3


def test_last_line_is_clean_and_draws_nothing() -> None:
    plan = make_plan(Schedule.from_config(config_of("lcm")), "lcm", 4, Guidance())
    assert [line.c_noise for line in plan.lines] == [999.0, 759.0, 499.0, 259.0]
    assert [line.draw for line in plan.lines] == [True, True, True, False]
    assert (plan.lines[-1].alpha, plan.lines[-1].sigma, plan.lines[-1].s) == (1.0, 0.0, 0.0)


def test_no_more_steps_than_it_was_distilled_on() -> None:
    with pytest.raises(ValueError, match="at most the 50 .* got 51"):
        make_plan(Schedule.from_config(config_of("lcm")), "lcm", 51, Guidance())


def test_comparison_sees_the_boundary_condition() -> None:
    schedule = replace(Schedule.from_config(config_of("lcm")), timestep_scaling=9.0)
    plan = make_plan(schedule, "lcm", 50, Guidance())
    exact = make_plan(replace(schedule, timestep_scaling=10.0), "lcm", 50, Guidance())
    assert difference(our_run(plan)[0][-1], our_run(exact)[0][-1]) > 1e-6
