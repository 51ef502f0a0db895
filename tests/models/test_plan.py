"""Plans against the published schedulers, run side by side with the same noise and a nonlinear stand-in network."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.solver_step import solver_step
from models.plan import SOLVERS, Plan, Schedule, make_plan

CLASSES: dict[str, Any] = {
    "euler": EulerDiscreteScheduler,
    "euler-ancestral": EulerAncestralDiscreteScheduler,
    "ddim": DDIMScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
}
BASE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
PREDICTIONS: dict[str, dict[str, Any]] = {
    "eps": {"prediction_type": "epsilon"},
    "v": {"prediction_type": "v_prediction"},
    "zero-snr-v": ZERO_SNR,
}
SPACINGS = ("leading", "trailing", "linspace")
COUNTS = (1, 2, 3, 4, 14, 15, 20, 30)
RUNS = [("euler", 0.0), ("euler-ancestral", 0.0), ("ddim", 0.0), ("ddim", 0.7), ("dpm++2m", 0.0)]
SHAPE = (1, 4, 8, 8)

# The published schedulers hand tensors to numpy in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def config_of(solver: str, **options: Any) -> dict[str, Any]:
    config = {"_class_name": CLASSES[solver].__name__, **BASE, **options}
    return {**config, "clip_sample": False, "set_alpha_to_one": False} if solver == "ddim" else config


def network(x: Tensor, c_noise: float) -> Tensor:
    """Nonlinear in x and in the timestep, and mixes positions, so no two wrong coefficients cancel."""
    return torch.tanh(0.8 * x + 0.4 * x.roll(1, -1) - 0.3 * x.roll(1, 1) + np.sin(c_noise / 150.0))


class TorchInFp64:
    """torch, but float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture
def fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published schedulers in fp64, with the fp32 noise they always draw.

    They hard-code fp32, whose rounding alone is 1e-3 of an Euler step from sigma = 4096, and would hide wrong numbers.
    """

    def fp32_noise(shape: Any, generator: torch.Generator, device: Any = None, dtype: Any = None) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    for cls in CLASSES.values():
        module = sys.modules[cls.__module__]
        monkeypatch.setattr(module, "torch", TorchInFp64())
        monkeypatch.setattr(module, "randn_tensor", fp32_noise)


def published_scheduler(solver: str, config: dict[str, Any], dtype: torch.dtype) -> Any:
    scheduler = CLASSES[solver].from_config(config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(dtype)
    if solver == "ddim":
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.to(dtype)
    return scheduler


def published_run(
    scheduler: Any, steps: int, eta: float = 0.0, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], Tensor]:
    """The latents of a published scheduler after each step, and the state of the generator at the end."""
    scheduler.set_timesteps(steps)
    if not isinstance(scheduler, DDIMScheduler):
        scheduler.sigmas = scheduler.sigmas.to(dtype)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(SHAPE, generator=generator).to(dtype) * scheduler.init_noise_sigma
    options = {"eta": eta} if isinstance(scheduler, DDIMScheduler) else {}
    states = []
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), float(t))
        x = scheduler.step(output, t, x, **options, generator=generator, return_dict=False)[0]
        assert x.dtype == dtype
        states.append(x)
    return states, generator.get_state()


def our_run(plan: Plan, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    """The same through the plan, with noise drawn by its contract: x, then once for every line that draws."""
    generator = torch.Generator().manual_seed(7)
    state = torch.zeros(1, plan.history + 1, *SHAPE[1:], dtype=dtype)
    state[:, 0] = plan.init_scale * torch.randn(SHAPE, generator=generator).to(dtype)
    states, drawn = [], 0
    for line in plan.lines:
        output = network(line.c_in * state[:, 0], line.c_noise)[:, None]
        noise = torch.randn(SHAPE, generator=generator) if line.draw else torch.zeros(SHAPE)
        drawn += line.draw
        c_skip, c_out, s = (torch.tensor([c], dtype=torch.float64) for c in (line.c_skip, line.c_out, line.s))
        a, b = (torch.tensor([c], dtype=torch.float64) for c in (line.a, line.b))
        state = solver_step(state, output, torch.ones(1, 1), c_skip, c_out, a, b, s, noise)
        states.append(state[:, 0])
    assert drawn == plan.draws
    return states, generator.get_state()


def difference(ours: Tensor, published: Tensor) -> float:
    return float((ours - published).abs().max() / published.abs().max())


def worst_difference(plan: Plan, published: tuple[list[Tensor], Tensor], in_vp_here_only: bool) -> float:
    """Over all steps, the last included. Checks on the way that both drew the same noises."""
    ours, our_generator = our_run(plan)
    assert len(ours) == len(published[0])
    assert torch.equal(our_generator, published[1])
    scales = [line.alpha if in_vp_here_only else 1.0 for line in plan.lines]
    return max(difference(x, scale * y) for x, y, scale in zip(ours, published[0], scales, strict=True))


def vp_here_only(solver: str, schedule: Schedule) -> bool:
    return schedule.zero_snr and solver.startswith("euler")


@pytest.mark.usefixtures("fp64")
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("solver", "eta"), RUNS)
def test_equals_the_published_scheduler(solver: str, eta: float, prediction: str, spacing: str) -> None:
    """With the published fp32 abar fed to ours, so that only the solvers differ; their sigmas are still fp32."""
    config = config_of(solver, **PREDICTIONS[prediction], timestep_spacing=spacing)
    scheduler = published_scheduler(solver, config, torch.float64)
    schedule = replace(Schedule.from_config(config), alphas_cumprod=tuple(scheduler.alphas_cumprod.tolist()))
    for steps in COUNTS:
        plan = make_plan(schedule, solver, steps, guidance=1.0, eta=eta)
        published = published_run(scheduler, steps, eta)
        # Measured: 1.9e-7 (euler-ancestral, 30 steps, from the fp32 sigmas); 2e-15 for ddim, which has none.
        assert worst_difference(plan, published, vp_here_only(solver, schedule)) < 1e-6, steps


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("solver", "eta"), RUNS)
def test_equals_the_published_scheduler_as_it_ships(solver: str, eta: float, prediction: str) -> None:
    """In fp32, and with our fp64 tables of abar against the published fp32 ones."""
    for spacing in SPACINGS:
        config = config_of(solver, **PREDICTIONS[prediction], timestep_spacing=spacing)
        scheduler = published_scheduler(solver, config, torch.float32)
        schedule = Schedule.from_config(config)
        # Measured: 1.3e-5 (Euler at timestep 0), but 1.2e-3 where the published Euler starts at sigma = 4096 in fp32.
        limit = 2e-3 if vp_here_only(solver, schedule) else 2e-5
        for steps in (1, 2, 4, 20):
            plan = make_plan(schedule, solver, steps, guidance=1.0, eta=eta)
            published = published_run(scheduler, steps, eta, torch.float32)
            assert worst_difference(plan, published, vp_here_only(solver, schedule)) < limit, (spacing, steps)


@pytest.mark.usefixtures("fp64")
def test_comparison_tells_solvers_and_step_counts_apart() -> None:
    final = {}
    for solver, eta in RUNS:
        schedule = Schedule.from_config(config_of(solver, timestep_spacing="trailing"))
        final[solver, eta] = our_run(make_plan(schedule, solver, 14, 1.0, eta=eta))[0][-1]
        fewer = our_run(make_plan(schedule, solver, 13, 1.0, eta=eta))[0][-1]
        assert difference(fewer, final[solver, eta]) > 1e-3
    published = published_run(published_scheduler("euler", config_of("euler"), torch.float64), 14)[0][-1]
    assert all(difference(x, published) > 1e-3 for run, x in final.items() if run[0] != "euler")
    runs = list(final)
    assert all(difference(final[p], final[q]) > 1e-3 for i, p in enumerate(runs) for q in runs[:i])


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("solver", "eta"), RUNS)
def test_plan_runs_in_fp32_without_loss(solver: str, eta: float, prediction: str) -> None:
    """Zero terminal SNR included, where VE scale would lose 1e-3."""
    config = config_of(solver, **PREDICTIONS[prediction], timestep_spacing="trailing")
    plan = make_plan(Schedule.from_config(config), solver, 20, 1.0, eta=eta)
    in_fp32, in_fp64 = our_run(plan, torch.float32)[0][-1], our_run(plan)[0][-1]
    assert difference(in_fp32, in_fp64) < 1e-5


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("solver", "eta"), [*RUNS, ("ddim", 1.0)])
def test_every_plan_is_finite_and_ends_clean(solver: str, eta: float, prediction: str, spacing: str) -> None:
    schedule = Schedule.from_config(config_of("euler", **PREDICTIONS[prediction], timestep_spacing=spacing))
    for steps in range(1, 51):
        plan = make_plan(schedule, solver, steps, 5.0, eta=eta)
        k = plan.history + 1
        assert len(plan.lines) == steps
        for line in plan.lines:
            assert (len(line.a), len(line.b), {len(row) for row in line.a}) == (k, k, {k})
            numbers = [line.c_in, line.c_noise, line.c_skip, line.c_out, line.s, line.alpha, line.sigma, *line.b]
            assert np.isfinite([*numbers, *np.ravel(line.a)]).all()
            assert 0.0 <= line.c_noise <= 999.0 and np.float32(line.c_noise) == line.c_noise
            if schedule.zero_snr:
                assert np.abs([*numbers[2:], *np.ravel(line.a)]).max() < 10.0
        # DDIM strides over the training timesteps and can end at the first of them instead of past it.
        end = plan.lines[-1].alpha, plan.lines[-1].sigma
        assert end == (1.0, 0.0) or (solver == "ddim" and end[0] ** 2 == schedule.alphas_cumprod[0])
        assert plan.draws == (steps if eta > 0.0 or solver == "euler-ancestral" else 0)


def test_zero_terminal_snr_is_exact_in_ddim_and_capped_elsewhere() -> None:
    schedule = Schedule.from_config(config_of("ddim", **ZERO_SNR, timestep_spacing="trailing"))
    assert schedule.alphas_cumprod[-1] == 0.0
    first = make_plan(schedule, "ddim", 4, 1.0).lines[0]
    assert (first.c_in, first.c_skip, first.c_out, first.b) == (1.0, 0.0, -1.0, (first.alpha,))
    # All of the noise is fresh. The published scheduler takes the root of a rounding error here: 2e-4, or NaN.
    ancestral = make_plan(schedule, "ddim", 4, 1.0, eta=1.0).lines[0]
    assert ancestral.a == ((0.0,),) and ancestral.s == pytest.approx(ancestral.sigma, rel=1e-15)
    for solver in ("euler", "euler-ancestral", "dpm++2m"):
        plan = make_plan(schedule, solver, 4, 1.0)
        assert plan.lines[0].c_skip == pytest.approx(2.0**-12)
        assert plan.init_scale == pytest.approx(1.0, abs=1e-7)  # sqrt(1 - 2^-24) where the noise comes alone
    with pytest.raises(ValueError, match="needs v_prediction"):
        make_plan(replace(schedule, prediction="epsilon"), "ddim", 4, 1.0)


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(list(SOLVERS)),
    st.sampled_from(list(PREDICTIONS)),
    st.sampled_from(SPACINGS),
    st.integers(1, 60),
    st.floats(0.0, 30.0),
)
def test_json_round_trip_is_exact(solver: str, prediction: str, spacing: str, steps: int, guidance: float) -> None:
    schedule = Schedule.from_config(config_of(solver, **PREDICTIONS[prediction], timestep_spacing=spacing))
    plan = make_plan(schedule, solver, steps, guidance, network="base", eta=0.3 if solver == "ddim" else 0.0)
    again = Plan.from_json(plan.to_json())
    assert again == plan and hash(again) == hash(plan)
    assert again.to_json() == plan.to_json()


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", '{"lines": [{}], "history": 0, "init_scale": 1.0}'])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Plan.from_json(text)


def test_any_solver_runs_on_any_config() -> None:
    for solver in SOLVERS:
        plans = [make_plan(Schedule.from_config(config_of(named)), solver, 10, 7.5) for named in CLASSES]
        # The configs differ in set_alpha_to_one, which only DDIM reads.
        assert len({plan for plan, named in zip(plans, CLASSES, strict=True) if named != "ddim"}) == 1
        assert (plans[0] == plans[2]) == (solver != "ddim")
        assert {line.lanes for line in plans[0].lines} == {(-6.5, 7.5)}
        assert {line.network for line in plans[0].lines} == {"unet"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "heun"}, "unknown solver 'heun'; known: euler, euler-ancestral, ddim, dpm"),
        ({"steps": 0}, "between 1 and 1000, got 0"),
        ({"steps": 1001}, "between 1 and 1000, got 1001"),
        ({"steps": 1000}, "steps_offset 1 leave timesteps 0 .. 999"),
        ({"steps": 1000, "solver": "dpm++2m"}, "visit a timestep twice"),
        ({"eta": 1.5, "solver": "ddim"}, "eta must be between 0 and 1"),
        ({"eta": 0.5}, "'euler' has no eta"),
        ({"guidance": float("nan")}, "guidance"),
    ],
)
def test_request_out_of_range_is_named(arguments: dict[str, Any], message: str) -> None:
    schedule = Schedule.from_config(config_of("euler"))
    with pytest.raises(ValueError, match=message):
        make_plan(schedule, **{"solver": "euler", "steps": 10, "guidance": 5.0, **arguments})


def test_plans_need_no_torch() -> None:
    code = "import sys, models.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
