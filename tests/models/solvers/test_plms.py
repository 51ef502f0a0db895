"""PLMS against the published scheduler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from models.plan import Guidance, Schedule, make_plan
from tests.support.samplers import (
    PREDICTIONS,
    SHAPE,
    SPACINGS,
    advance,
    config_of,
    difference,
    network,
    our_run,
    own_levels,
    published_scheduler,
    schedulers_in_fp64,
    start,
    worst_against_published,
    worst_against_shipped,
)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_equals_the_published_scheduler(prediction: str, spacing: str) -> None:
    """Measured: 2.8e-14; as it ships 4.9e-6 (v, trailing)."""
    config = config_of("plms", **PREDICTIONS[prediction], timestep_spacing=spacing)
    assert worst_against_published("plms", config, (1, 2, 3, 4, 15)) < 1e-12
    assert worst_against_shipped("plms", config, (1, 15)) < 2e-5


def test_the_first_interval_is_evaluated_twice() -> None:
    plan = make_plan(Schedule.from_config(config_of("plms")), "plms", 4, Guidance())
    assert [line.c_noise for line in plan.lines] == [751.0, 501.0, 501.0, 251.0, 1.0]
    levels = [(line.alpha, line.sigma) for line in plan.lines]
    assert levels[0] == levels[1] and len(set(levels)) == 4


def test_from_a_picture_equals_the_published_updates_at_the_same_timesteps() -> None:
    """The published img2img pipeline cuts the list of evaluations as if it were the list of steps, so all but the first
    of its updates are one level behind; with the timesteps in step with the levels, it is this."""
    config = config_of("plms")
    picture = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    with schedulers_in_fp64():
        scheduler = published_scheduler(config, torch.float64)
        schedule = own_levels(config, scheduler)
        plan = make_plan(schedule, "plms", 10, Guidance(), strength=0.55, from_picture=True)
        assert [line.c_noise for line in plan.lines] == [401.0, 301.0, 301.0, 201.0, 101.0, 1.0]
        scheduler.set_timesteps(10)
        state, _ = start(plan, picture=picture)
        x = state[:, 0]
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7)).double()
        timesteps = [round(line.c_noise) for line in plan.lines]
        assert difference(x, scheduler.add_noise(picture.double(), noise, torch.tensor(timesteps[:1]))) < 1e-12
        ours = advance(plan, range(6), state, torch.Generator())
        for t, after in zip(timesteps, ours, strict=True):
            x = scheduler.step(network(x, float(t)), torch.tensor(t), x, return_dict=False)[0]
            assert difference(after[:, 0], x) < 1e-12


def without_history(plan: Any) -> Any:
    """The same lines with the weights of older outputs added to the newest's, which is DDIM."""
    lines = [replace(line, a=((line.a[0][0], 0.0, line.a[0][2], 0.0), *line.a[1:])) for line in plan.lines]
    return replace(plan, lines=tuple(lines))


def test_comparison_sees_the_history() -> None:
    plan = make_plan(Schedule.from_config(config_of("plms")), "plms", 15, Guidance())
    assert difference(our_run(without_history(plan))[0][-1], our_run(plan)[0][-1]) > 1e-3
