"""The published schedulers and our plans, run side by side with the same noise and a nonlinear stand-in network."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from kernels.solver_step import solver_step
from models.plan import Guidance, Plan, Schedule, make_plan

CLASSES: dict[str, Any] = {
    "euler": EulerDiscreteScheduler,
    "euler-ancestral": EulerAncestralDiscreteScheduler,
    "ddim": DDIMScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
    "dpm++2m-sde": DPMSolverMultistepScheduler,
    "lcm": LCMScheduler,
    "plms": PNDMScheduler,
    "unipc": UniPCMultistepScheduler,
    "heun": HeunDiscreteScheduler,
    "flow-euler": FlowMatchEulerDiscreteScheduler,
    "flow-dpm++2m": DPMSolverMultistepScheduler,
}
OWN_OPTIONS: dict[str, dict[str, Any]] = {
    "ddim": {"clip_sample": False, "set_alpha_to_one": False},
    "dpm++2m-sde": {"algorithm_type": "sde-dpmsolver++"},
    "plms": {"skip_prk_steps": True, "set_alpha_to_one": False},
}
BASE: dict[str, Any] = {
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
SVD: dict[str, Any] = {
    **BASE,
    "_class_name": "EulerDiscreteScheduler",
    "prediction_type": "v_prediction",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
}
FLOW = {"num_train_timesteps": 1000, "shift": 3.0}
FLOW_DPM = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
SHAPE = (1, 4, 8, 8)

Network = Callable[[Tensor, float], Tensor]


def config_of(solver: str, **options: Any) -> dict[str, Any]:
    """A config of the class that publishes this solver."""
    base = {"flow-euler": FLOW, "flow-dpm++2m": {**BASE, **FLOW_DPM}}.get(solver, BASE)
    return {"_class_name": CLASSES[solver].__name__, **base, **options, **OWN_OPTIONS.get(solver, {})}


def network(x: Tensor, c_noise: float, period: float = 150.0) -> Tensor:
    """Nonlinear in x and in c_noise, and mixes positions, so no two wrong coefficients cancel."""
    return torch.tanh(0.8 * x + 0.4 * x.roll(1, -1) - 0.3 * x.roll(1, 1) + np.sin(c_noise / period))


class TorchInFp64:
    """torch, but float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def schedulers_in_fp64() -> Iterator[None]:
    """The published schedulers in fp64, with the fp32 noise they always draw.

    They hard-code fp32, whose rounding alone is 1e-3 of an Euler step from sigma = 4096, and would hide wrong numbers.
    """

    def fp32_noise(shape: Any, generator: torch.Generator, device: Any = None, dtype: Any = None) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    patches: list[Any] = []
    for module in {sys.modules[cls.__module__] for cls in CLASSES.values()}:
        patches += [patch.object(module, "torch", TorchInFp64())]
        patches += [patch.object(module, "randn_tensor", fp32_noise)] if hasattr(module, "randn_tensor") else []
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def published_scheduler(config: dict[str, Any], dtype: torch.dtype) -> Any:
    """The scheduler that a config names, its tables cast."""
    (cls,) = {cls for cls in CLASSES.values() if cls.__name__ == config["_class_name"]}
    scheduler = cls.from_config(config)
    for name in ("alphas_cumprod", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).to(dtype))
    return scheduler


def published_run(
    scheduler: Any,
    steps: int | None,
    eta: float = 0.0,
    dtype: torch.dtype = torch.float64,
    *,
    begin: int = 0,
    picture: Tensor | None = None,
    evaluate: Network = network,
    **set_timesteps: Any,
) -> tuple[list[Tensor], Tensor]:
    """The latents of a published scheduler after each step, and the state of the generator at the end.

    From ``picture`` it begins as the published pipelines do, at the timestep of index ``begin``.
    """
    scheduler.set_timesteps(steps, **set_timesteps)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.to(dtype)
    # Without it they look up their place by the timestep, and begin too late where the first two are rounded to one.
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(SHAPE, generator=generator).to(dtype)
    timesteps = scheduler.timesteps[begin:]
    if picture is None:
        x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    elif hasattr(scheduler, "scale_noise"):
        x = scheduler.scale_noise(picture.to(dtype), timesteps[:1], noise)
    else:
        x = scheduler.add_noise(picture.to(dtype), noise, timesteps[:1])
    options: dict[str, Any] = {"eta": eta} if isinstance(scheduler, DDIMScheduler) else {}
    if "generator" in scheduler.step.__code__.co_varnames:
        options["generator"] = generator
    states = []
    for t in timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(evaluate(scaled, float(t)), t, x, **options, return_dict=False)[0]
        assert x.dtype == dtype
        states.append(x)
    return states, generator.get_state()


def start(plan: Plan, dtype: torch.dtype = torch.float64, picture: Tensor | None = None) -> tuple[Tensor, Any]:
    """A row's state [1, K+1, C, h, w] at line 0, and its generator."""
    generator = torch.Generator().manual_seed(7)
    state = torch.zeros(1, plan.history + 1, *SHAPE[1:], dtype=dtype)
    state[:, 0] = plan.init_sigma * torch.randn(SHAPE, generator=generator).to(dtype)
    if picture is not None:
        state[:, 0] += plan.init_alpha * picture.to(dtype)
    return state, generator


def advance(
    plan: Plan, lines: Sequence[int], state: Tensor, generator: torch.Generator, evaluate: Network = network
) -> list[Tensor]:
    """The states [1, K+1, C, h, w] after each of these lines, with noise drawn by the contract of plans."""
    states = []
    for line in (plan.lines[index] for index in lines):
        output = evaluate(line.c_in * state[:, 0], line.c_noise)[:, None]
        noise = torch.randn(SHAPE, generator=generator) if line.draw else torch.zeros(SHAPE)
        c_skip, c_out, s = (torch.tensor([c], dtype=torch.float64) for c in (line.c_skip, line.c_out, line.s))
        a, b = (torch.tensor([c], dtype=torch.float64) for c in (line.a, line.b))
        state = solver_step(state, output, torch.ones(1, 1), c_skip, c_out, a, b, s, noise)
        states.append(state)
    return states


def our_run(
    plan: Plan, dtype: torch.dtype = torch.float64, picture: Tensor | None = None, evaluate: Network = network
) -> tuple[list[Tensor], Tensor]:
    """The latents of a plan after each line, and the state of the generator at the end."""
    state, generator = start(plan, dtype, picture)
    states = advance(plan, range(len(plan.lines)), state, generator, evaluate)
    return [state[:, 0] for state in states], generator.get_state()


def difference(ours: Tensor, published: Tensor) -> float:
    """The largest, in units of the largest published value."""
    return float((ours - published).abs().max() / published.abs().max())


def vp_here_only(solver: str, schedule: Schedule) -> bool:
    """Whether a solver runs in VE scale there and in VP scale here."""
    return schedule.zero_snr and solver in ("euler", "euler-ancestral", "heun")


def worst_difference(
    plan: Plan, ours: tuple[list[Tensor], Tensor], published: tuple[list[Tensor], Tensor], rescaled: bool = False
) -> float:
    """Over all lines. Checks on the way that there are as many as there, and that both drew the same noises."""
    assert len(ours[0]) == len(published[0])
    assert torch.equal(ours[1], published[1])
    scales = [line.alpha if rescaled else 1.0 for line in plan.lines]
    return max(difference(x, scale * y) for x, y, scale in zip(ours[0], published[0], scales, strict=True))


def own_levels(config: dict[str, Any], scheduler: Any) -> Schedule:
    """The schedule of a config with the published fp32 abar, so that only the solvers differ."""
    schedule = Schedule.from_config(config)
    if not schedule.alphas_cumprod:
        return schedule
    return replace(schedule, alphas_cumprod=tuple(scheduler.alphas_cumprod.tolist()))


def worst_against_published(
    solver: str, config: dict[str, Any], counts: Sequence[int], eta: float = 0.0, evaluate: Network = network
) -> float:
    """The largest difference over these step counts, in fp64 and at the published levels.

    Their abar is fed to ours; their sigmas are still rounded to fp32.
    """
    with schedulers_in_fp64():
        scheduler = published_scheduler(config, torch.float64)
        schedule = own_levels(config, scheduler)
        worst = 0.0
        for steps in counts:
            plan = make_plan(schedule, solver, steps, Guidance(), eta=eta)
            published = published_run(scheduler, steps, eta, evaluate=evaluate)
            ours = our_run(plan, evaluate=evaluate)
            worst = max(worst, worst_difference(plan, ours, published, vp_here_only(solver, schedule)))
        return worst


def worst_against_shipped(
    solver: str, config: dict[str, Any], counts: Sequence[int], eta: float = 0.0, evaluate: Network = network
) -> float:
    """As :func:`worst_against_published`, with our fp64 tables against the scheduler in fp32, as it ships."""
    schedule = Schedule.from_config(config)
    worst = 0.0
    for steps in counts:
        plan = make_plan(schedule, solver, steps, Guidance(), eta=eta)
        scheduler = published_scheduler(config, torch.float32)
        published = published_run(scheduler, steps, eta, torch.float32, evaluate=evaluate)
        ours = our_run(plan, evaluate=evaluate)
        worst = max(worst, worst_difference(plan, ours, published, vp_here_only(solver, schedule)))
    return worst
