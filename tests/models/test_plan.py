"""Whole plans: where they begin and end, hand-over, resuming, and what is refused. Solvers have tests of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.plan import SOLVERS, Guidance, Lane, Plan, Schedule, make_plan, supported_solvers
from tests.support.samplers import (
    PREDICTIONS,
    SHAPE,
    SPACINGS,
    SVD,
    ZERO_SNR,
    advance,
    config_of,
    difference,
    our_run,
    start,
)

ZOO = Path(__file__).resolve().parents[2] / "models" / "zoo"
DISCRETE = [name for name, solver in SOLVERS.items() if "discrete" in solver.grids]
STOCHASTIC = ("euler-ancestral", "dpm++2m-sde", "lcm")
PICTURE = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


def schedule_of(solver: str, **options: Any) -> Schedule:
    return Schedule.from_config(config_of(solver, **options))


def eta_of(solver: str) -> float:
    return 0.3 if solver == "ddim" else 0.0


def every_schedule() -> Iterator[tuple[str, Schedule]]:
    """Every solver with every kind of schedule that it runs on."""
    for solver in SOLVERS:
        if solver in DISCRETE:
            for options in PREDICTIONS.values():
                for spacing in SPACINGS:
                    yield solver, schedule_of("euler", **options, timestep_spacing=spacing)
            yield solver, schedule_of("euler", use_karras_sigmas=True)
        if "edm" in SOLVERS[solver].grids:
            yield solver, Schedule.from_config(SVD)
        if "flow" in SOLVERS[solver].grids:
            yield solver, schedule_of("flow-euler")
            yield solver, replace(schedule_of("flow-euler"), clean_shift=True)


CASES = list(every_schedule())


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_plan_is_finite_and_ends_clean(solver: str) -> None:
    for schedule in (schedule for name, schedule in CASES if name == solver):
        for steps in (1, 2, 3, 4, 5, 9, 14, 15, 29, 50):
            plan = make_plan(schedule, solver, steps, Guidance(5.0), eta=eta_of(solver))
            lines = {"plms": steps + (steps > 1), "heun": 2 * steps - 1}.get(solver, steps)
            k = plan.history + 1
            assert len(plan.lines) == lines
            for line in plan.lines:
                assert (len(line.a), len(line.b), {len(row) for row in line.a}) == (k, k, {k})
                numbers = [line.c_in, line.c_noise, line.c_skip, line.c_out, line.s, line.alpha, line.sigma, *line.b]
                assert np.isfinite([*numbers, *np.ravel(line.a)]).all()
                assert np.float32(line.c_noise) == line.c_noise and line.c_noise <= 1000.0
                # PLMS divides by sigma, and Heun's second evaluation weighs x by the ratio of two sigmas.
                if schedule.zero_snr and solver not in ("plms", "heun"):
                    assert np.abs([*numbers[2:], *np.ravel(line.a)]).max() < 10.0
            # DDIM strides over the training timesteps and can end at the first of them instead of past it.
            end = plan.lines[-1].alpha, plan.lines[-1].sigma
            assert end == (1.0, 0.0) or (solver in ("ddim", "plms") and end[0] ** 2 == schedule.alphas_cumprod[0])
            draws = {"euler-ancestral": steps, "dpm++2m-sde": steps, "ddim": steps, "lcm": steps - 1}
            assert plan.draws == draws.get(solver, 0)
            assert plan.init_alpha == 0.0


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_perfect_network_is_followed_exactly(solver: str) -> None:
    """With D = x0 the state stays at alpha x0 + sigma eps after every line, and ends at x0; eps is the first noise
    unless lines draw others. PLMS is exact where the network predicts noise: its weights are over outputs, which are
    then all equal."""
    x0 = PICTURE.double()
    for schedule in (schedule for name, schedule in CASES if name == solver):
        if solver == "plms" and schedule.prediction != "epsilon":
            continue
        if solver in ("ddim", "plms"):  # with the other spacings their steps do not begin where the last one ended
            schedule = replace(schedule, spacing="leading", set_alpha_to_one=True)
        plan = make_plan(schedule, solver, 9, Guidance(), from_picture=True)
        state, generator = start(plan, picture=x0)
        eps = (state[:, 0] - plan.init_alpha * x0) / plan.init_sigma
        for index, line in enumerate(plan.lines):
            perfect = (x0 - line.c_skip * state[:, 0]) / line.c_out
            (state,) = advance(plan, [index], state, generator, partial(returned, perfect))
            if solver not in STOCHASTIC:
                assert difference(state[:, 0], line.alpha * x0 + line.sigma * eps) < 1e-9
        # The last boundary condition of a consistency model keeps (1/2 / 10t)^2 of x: 2e-7 at timestep 99.
        assert difference(state[:, 0], x0) < (1e-6 if solver == "lcm" else 1e-9)


def returned(output: Tensor, _x: Tensor, _c_noise: float) -> Tensor:
    return output


def test_runs_of_all_solvers_differ() -> None:
    """But for DDIM without fresh noise, which is Euler in another scale."""
    schedule = schedule_of("euler")
    final = {name: our_run(make_plan(schedule, name, 14, Guidance(), eta=eta_of(name)))[0][-1] for name in DISCRETE}
    assert all(difference(final[p], final[q]) > 1e-4 for i, p in enumerate(DISCRETE) for q in DISCRETE[:i])


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_run_cut_anywhere_and_resumed_equals_the_uncut_one(solver: str) -> None:
    """From (state, line, number of draws) and the plan's own JSON: the same bits."""
    schedule = next(schedule for name, schedule in CASES if name == solver)
    plan = make_plan(schedule, solver, 5, Guidance(), eta=eta_of(solver))
    state, generator = start(plan, torch.float32)
    uncut = advance(plan, range(len(plan.lines)), state, generator)
    history_counted = False
    for line in range(1, len(plan.lines)):
        again = Plan.from_json(plan.to_json())
        _, generator = start(again)
        for _ in range(sum(done.draw for done in plan.lines[:line])):
            torch.randn(SHAPE, generator=generator)
        resumed = advance(again, range(line, len(plan.lines)), uncut[line - 1].clone(), generator)
        assert torch.equal(resumed[-1], uncut[-1])
        forgotten = uncut[line - 1].clone()
        forgotten[:, 1:] = 0.0
        _, generator = start(again)
        other = advance(again, range(line, len(plan.lines)), forgotten, generator)
        history_counted |= not torch.equal(other[-1], uncut[-1])
    assert history_counted == (plan.history > 0 or plan.draws > 1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_plan_runs_in_fp32_without_loss(solver: str) -> None:
    """Zero terminal SNR included, where VE scale would lose 1e-3."""
    options = {} if solver.startswith("flow") else {**ZERO_SNR, "timestep_spacing": "trailing"}
    plan = make_plan(schedule_of(solver, **options), solver, 20, Guidance(), eta=eta_of(solver))
    in_fp32, in_fp64 = our_run(plan, torch.float32)[0][-1], our_run(plan)[0][-1]
    assert difference(in_fp32, in_fp64) < 1e-5


def test_guidance_of_a_level_does_not_depend_on_where_a_row_began() -> None:
    guidance = Guidance(5.0, interval=(0.25, 0.75), rescale=0.7)
    whole = make_plan(schedule_of("heun"), "heun", 8, guidance)
    assert [len(line.lanes) for line in whole.lines] == [1] * 4 + [2] * 8 + [1] * 3
    assert [line.rescale for line in whole.lines] == [0.0] * 4 + [0.7] * 8 + [0.0] * 3
    part = make_plan(schedule_of("heun"), "heun", 8, guidance, strength=0.5, from_picture=True)
    assert part.lines == whole.lines[8:]


def test_a_line_holds_its_lanes() -> None:
    guidance = Guidance(3.0, first_scale=1.0, shape="linear", frames=3)
    plan = make_plan(Schedule.from_config(SVD), "euler", 5, guidance, network="video")
    lanes = (Lane("negative", (0.0, -1.0, -2.0)), Lane("positive", (1.0, 2.0, 3.0)))
    assert {line.lanes for line in plan.lines} == {lanes} and {line.network for line in plan.lines} == {"video"}


def test_zero_terminal_snr_is_exact_in_ddim_and_capped_elsewhere() -> None:
    schedule = schedule_of("ddim", **ZERO_SNR, timestep_spacing="trailing")
    assert schedule.alphas_cumprod[-1] == 0.0
    for solver in ("ddim", "lcm"):
        first = make_plan(schedule, solver, 4, Guidance()).lines[0]
        assert (first.c_in, first.c_skip, first.c_out) == (1.0, 0.0, -1.0)
    assert make_plan(schedule, "ddim", 4, Guidance()).lines[0].b == (first_alpha(schedule),)
    # All of the noise is fresh. The published scheduler takes the root of a rounding error here: 2e-4, or NaN.
    ancestral = make_plan(schedule, "ddim", 4, Guidance(), eta=1.0).lines[0]
    assert ancestral.a == ((0.0,),) and ancestral.s == pytest.approx(ancestral.sigma, rel=1e-15)
    for solver in ("euler", "euler-ancestral", "dpm++2m", "dpm++2m-sde", "unipc", "heun"):
        plan = make_plan(schedule, solver, 4, Guidance())
        assert plan.lines[0].c_skip == pytest.approx(2.0**-12)
        assert plan.init_sigma == pytest.approx(1.0, abs=1e-7)  # sqrt(1 - 2^-24) where the noise comes alone
    with pytest.raises(ValueError, match="needs v_prediction"):
        make_plan(replace(schedule, prediction="epsilon"), "ddim", 4, Guidance())


def first_alpha(schedule: Schedule) -> float:
    return make_plan(schedule, "ddim", 4, Guidance()).lines[0].alpha


# The second of four lines of the shipped model, from when these four were all solvers.
SHIPPED: dict[tuple[str, float], tuple[float, float, float, float, float, float]] = {
    ("ddim", 0.0): (1.0, 0.8852317064872273, 0.0, 0.33107226927679256, 0.0, 0.49229987462536007),
    ("ddim", 0.7): (1.0, 0.6639563372964657, 0.0, 0.37137324091597484, 0.5756961580104566, 0.49229987462536007),
    ("dpm++2m", 0.0): (1.0, 0.8852317064872273, -0.027864038499647095, 0.35893630777643964, 0.0, 0.49229987462536007),
    ("euler", 0.0): (0.9999999701976772, 0.8852317064872272, 0.0, 0.33107226927679245, 0.0, 0.49229987462535996),
    ("euler-ancestral", 0.0): (
        0.9999999701976772, 0.28991229852368805, 0.0, 0.4394980315490945, 0.8224230828720807, 0.49229987462535996,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("solver", "eta"), SHIPPED)
def test_plans_of_the_shipped_model_stay_what_they_are(solver: str, eta: float) -> None:
    config = json.loads((ZOO / "emoji-xl" / "scheduler" / "scheduler_config.json").read_text())
    plan = make_plan(Schedule.from_config(config), solver, 4, Guidance(3.0), eta=eta)
    line = plan.lines[1]
    numbers = (plan.init_sigma, line.a[0][0], sum(line.a[0][1:]), line.b[0], line.s, line.alpha)
    assert numbers == pytest.approx(SHIPPED[solver, eta], rel=1e-14)
    assert line.c_in == pytest.approx(1.0, rel=1e-15) and line.c_noise == 749.0
    assert [line.c_skip, line.c_out] == pytest.approx([0.18213040062510888, -0.983274385493763], rel=1e-14)
    assert line.lanes == (Lane("negative", -2.0), Lane("positive", 3.0))


@settings(max_examples=40)
@given(
    st.integers(0, len(CASES) - 1),  # not the case itself: hypothesis would print its thousand numbers
    st.integers(1, 40),
    st.floats(0.0, 30.0),
    st.sampled_from(["constant", "linear", "triangle"]),
    st.floats(0.0, 1.0),
    st.booleans(),
)
def test_json_round_trip_is_exact(
    case: int, steps: int, scale: float, shape: str, share: float, from_picture: bool
) -> None:
    solver, schedule = CASES[case]
    guidance = Guidance(scale, shape=shape, frames=5, rescale=share, skip_scale=share)
    strength = share if from_picture else 1.0
    options: dict[str, Any] = {"eta": eta_of(solver), "strength": strength, "from_picture": from_picture}
    refiner = None if schedule.kind == "edm" else ("refiner", share)
    plan = make_plan(schedule, solver, steps, guidance, network="base", refiner=refiner, **options)
    again = Plan.from_json(plan.to_json())
    assert again == plan and hash(again) == hash(plan)
    assert again.to_json() == plan.to_json()
    for line in plan.lines:
        assert sum(np.array(lane.weight) for lane in line.lanes) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    "text",
    ["{}", "[]", "nonsense", '{"lines": [{}], "history": 0, "init_alpha": 0.0, "init_sigma": 1.0}'],
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Plan.from_json(text)


def test_any_solver_runs_on_any_config_of_its_kind() -> None:
    named = [schedule_of(name) for name in DISCRETE]
    for solver in DISCRETE:
        plans = {make_plan(schedule, solver, 10, Guidance(7.5)) for schedule in named}
        # The configs differ in set_alpha_to_one, which only these read.
        assert len(plans) == (2 if solver in ("ddim", "plms") else 1)
    assert supported_solvers(named[0]) == tuple(DISCRETE)
    assert supported_solvers(Schedule.from_config(SVD)) == ("euler", "heun")
    assert supported_solvers(schedule_of("flow-euler")) == ("flow-euler", "flow-dpm++2m")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "rk4"}, "unknown solver 'rk4'; known: euler, euler-ancestral, ddim, dpm"),
        ({"solver": "flow-euler"}, "'flow-euler' does not run on a discrete schedule; those that do: euler, "),
        ({"schedule": schedule_of("flow-euler")}, "'euler' does not run on a flow schedule; .*: flow-euler, flow-dpm"),
        ({"schedule": Schedule.from_config(SVD), "solver": "ddim"}, "does not run on a edm schedule"),
        ({"steps": 0}, "between 1 and 1000, got 0"),
        ({"steps": 1001}, "between 1 and 1000, got 1001"),
        ({"steps": 1000}, "steps_offset 1 leave timesteps 0 .. 999"),
        ({"steps": 1000, "solver": "dpm++2m"}, "visit a timestep twice"),
        ({"eta": 1.5, "solver": "ddim"}, "eta must be between 0 and 1"),
        ({"eta": 0.5}, "'euler' has no eta"),
        ({"strength": 1.1, "from_picture": True}, "strength must be between 0 and 1, got 1.1"),
        ({"strength": float("nan"), "from_picture": True}, "strength must be between 0 and 1, got nan"),
        ({"strength": 0.5}, "strength 0.5 is a share of the way from a picture"),
        ({"refiner": ("refiner", -0.1)}, "refiner must take over at a share between 0 and 1, got -0.1"),
        ({"schedule": Schedule.from_config(SVD), "refiner": ("refiner", 0.8)}, "an edm schedule has none"),
    ],
)
def test_request_out_of_range_is_named(arguments: dict[str, Any], message: str) -> None:
    request = {"schedule": schedule_of("euler"), "solver": "euler", "steps": 10, "guidance": Guidance(5.0)}
    with pytest.raises(ValueError, match=message):
        make_plan(**{**request, **arguments})


def test_plans_need_no_torch() -> None:
    code = "import sys, models.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
