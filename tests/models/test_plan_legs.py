"""Where plans begin and change networks: pictures, strengths and refiners, as the published pipelines do it."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusionXLImg2ImgPipeline

from models.plan import SOLVERS, Guidance, Schedule, make_plan
from tests.support.samplers import (
    SHAPE,
    SVD,
    advance,
    config_of,
    difference,
    network,
    our_run,
    own_levels,
    published_run,
    published_scheduler,
    schedulers_in_fp64,
    start,
    worst_difference,
)

PICTURE = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


def schedule_of(solver: str) -> Schedule:
    return Schedule.from_config(config_of(solver))


def eta_of(solver: str) -> float:
    return 0.3 if solver == "ddim" else 0.0


def published_cut(scheduler: Any, flow: bool, steps: int, strength: float) -> int:
    """The index of the first timestep that the published img2img pipeline runs."""
    scheduler.set_timesteps(steps)
    pipeline: Any = StableDiffusion3Img2ImgPipeline if flow else StableDiffusionXLImg2ImgPipeline
    kept, _ = pipeline.get_timesteps(SimpleNamespace(scheduler=scheduler), steps, strength, None)
    return len(scheduler.timesteps) - len(kept)


@pytest.mark.parametrize("strength", [1.0, 0.75, 0.55, 0.3, 0.1, 0.01])
@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "plms"])
def test_from_a_picture_equals_the_published_pipelines(solver: str, strength: float) -> None:
    """Their timesteps, their first noise and every state; but where they run no step at all, we run the last."""
    steps, flow = 10, solver.startswith("flow")
    config = config_of(solver)
    with schedulers_in_fp64():
        scheduler = published_scheduler(config, torch.float64)
        schedule = own_levels(config, scheduler)
        plan = make_plan(schedule, solver, steps, Guidance(), strength=strength, from_picture=True)
        begin = published_cut(scheduler, flow, steps, strength)
        if begin == len(scheduler.timesteps):
            assert strength == 0.01 and not flow
            begin -= 1
        assert [line.c_noise for line in plan.lines] == pytest.approx(scheduler.timesteps[begin:].tolist(), rel=1e-7)
        published = published_run(scheduler, steps, begin=begin, picture=PICTURE)
        assert worst_difference(plan, our_run(plan, picture=PICTURE), published) < 1e-6
    full = make_plan(schedule, solver, steps, Guidance())
    assert plan.lines[-1].c_noise == full.lines[-1].c_noise
    assert plan.init_alpha > 0.0 or (flow and strength == 1.0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_strength_runs_no_step(solver: str) -> None:
    schedule = schedule_of(solver)
    for strength in (0.0, 1e-9, 0.05):
        plan = make_plan(schedule, solver, 8, Guidance(), strength=strength, from_picture=True)
        assert len(plan.lines) == 1 and plan.init_sigma > 0.0
        assert plan.lines[0].c_noise == make_plan(schedule, solver, 8, Guidance()).lines[-1].c_noise


def test_text_to_image_begins_as_noise() -> None:
    """And a picture at full strength does not: its level is that of the first step, not that of noise alone."""
    schedule = schedule_of("euler")
    noise = make_plan(schedule, "euler", 30, Guidance())
    picture = make_plan(schedule, "euler", 30, Guidance(), from_picture=True)
    assert noise.lines == picture.lines
    assert (noise.init_alpha, picture.init_alpha) == (0.0, 1.0)
    assert noise.init_sigma == pytest.approx(math.hypot(picture.init_sigma, 1.0))
    assert make_plan(Schedule.from_config(SVD), "euler", 25, Guidance()).init_sigma == pytest.approx(700.000714)


@pytest.mark.parametrize("at", [0.8, 0.75, 0.5])
@pytest.mark.parametrize("solver", ["euler", "euler-ancestral", "ddim", "lcm"])
def test_equal_networks_on_both_sides_of_a_hand_over_equal_one(solver: str, at: float) -> None:
    schedule = schedule_of(solver)
    one = make_plan(schedule, solver, 50, Guidance(), eta=eta_of(solver))
    two = make_plan(schedule, solver, 50, Guidance(), eta=eta_of(solver), refiner=("refiner", at))
    assert {line.network for line in two.lines} == {"unet", "refiner"}
    taken_over = [line for line in two.lines if line.network == "refiner"]
    assert {lane.condition for line in taken_over for lane in line.lanes} == {"refiner/positive"}
    own = [replace(line, network="unet", lanes=one.lines[0].lanes) for line in two.lines]
    assert replace(two, lines=tuple(own)) == one


@pytest.mark.parametrize("at", [0.8, 0.75, 0.5])
def test_hand_over_is_where_the_published_pipelines_cut(at: float) -> None:
    scheduler = published_scheduler(config_of("euler"), torch.float32)
    scheduler.set_timesteps(50)
    refined, _ = StableDiffusionXLImg2ImgPipeline.get_timesteps(
        SimpleNamespace(scheduler=scheduler), 50, None, None, denoising_start=at
    )
    plan = make_plan(schedule_of("euler"), "euler", 50, Guidance(), refiner=("refiner", at))
    ours = [line.c_noise for line in plan.lines if line.network == "refiner"]
    assert ours == refined.tolist() and (at != 0.8 or len(ours) == 10)


@pytest.mark.parametrize("solver", ["dpm++2m", "dpm++2m-sde", "unipc"])
def test_history_begins_anew_at_a_hand_over(solver: str) -> None:
    """As a published scheduler that finishes what another began."""
    config, steps, cut = config_of(solver), 12, 8
    with schedulers_in_fp64():
        schedulers = [published_scheduler(config, torch.float64) for _ in range(2)]
        schedule = own_levels(config, schedulers[0])
        plan = make_plan(schedule, solver, steps, Guidance(), refiner=("refiner", 0.65))
        assert [line.network for line in plan.lines] == ["unet"] * cut + ["refiner"] * (steps - cut)
        first = published_run(schedulers[0], steps)[0]
        x, generator = first[cut - 1], torch.Generator().manual_seed(7)
        for _ in range(cut + 1 if solver == "dpm++2m-sde" else 1):
            torch.randn(SHAPE, generator=generator)
        schedulers[1].set_timesteps(steps)
        schedulers[1].sigmas = schedulers[1].sigmas.double()
        schedulers[1].set_begin_index(cut)
        options = {} if solver == "unipc" else {"generator": generator}
        for t in schedulers[1].timesteps[cut:]:
            x = schedulers[1].step(network(x, float(t)), t, x, **options, return_dict=False)[0]
        assert difference(our_run(plan)[0][-1], x) < 1e-6
        assert difference(our_run(plan)[0][-1], first[-1]) > 1e-6  # the control: one run without the cut


@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_of_the_first_network_but_x_reaches_the_second(solver: str) -> None:
    schedule = schedule_of(solver)
    plan = make_plan(schedule, solver, 12, Guidance(), eta=eta_of(solver), refiner=("refiner", 0.5))
    names = [line.network for line in plan.lines]
    cut = names.index("refiner")
    assert 0 < cut < len(names) and set(names[cut:]) == {"refiner"}
    state, generator = start(plan)
    state = advance(plan, range(cut), state, generator)[-1]
    poisoned = state.clone()
    poisoned[:, 1:] = 1e3
    here, there = (
        advance(plan, range(cut, len(names)), s, torch.Generator().manual_seed(1)) for s in (state, poisoned)
    )
    assert all(torch.equal(x[:, 0], y[:, 0]) for x, y in zip(here, there, strict=True))


def test_hand_over_and_picture_together() -> None:
    schedule = schedule_of("euler")
    whole = make_plan(schedule, "euler", 20, Guidance(), refiner=("refiner", 0.8))
    for strength in (0.5, 0.1):
        options: dict[str, Any] = {"strength": strength, "from_picture": True, "refiner": ("refiner", 0.8)}
        part = make_plan(schedule, "euler", 20, Guidance(), **options)
        assert part.lines == whole.lines[-len(part.lines) :]
    assert {line.network for line in part.lines} == {"refiner"}
    assert {line.network for line in make_plan(schedule, "euler", 20, Guidance(), refiner=("r", 1.0)).lines} == {"unet"}
