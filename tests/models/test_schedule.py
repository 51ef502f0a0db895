"""Schedules read from published configs: their tables, their defaults, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from models.schedule import ZERO_SNR_CAP, Level, Schedule, noise_levels, preconditioning

CONFIG: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
DDIM: Any = DDIMScheduler
CLASSES: list[Any] = [
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    DDIM,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
    HeunDiscreteScheduler,
]
LATENT = {**CONFIG, "num_train_timesteps": 1000, "trained_betas": None, "clip_sample": False}
# As the published folders have them, leftovers of other classes included.
PUBLISHED: dict[str, dict[str, Any]] = {
    "SD 1.5": {
        **LATENT, "_class_name": "PNDMScheduler", "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    },
    "SD 2.1": {
        **LATENT, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "set_alpha_to_one": False,
        "skip_prk_steps": True, "steps_offset": 1,
    },
    "SDXL": {
        **LATENT, "interpolation_type": "linear", "prediction_type": "epsilon", "sample_max_value": 1.0,
        "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
    "SDXL-Turbo": {
        **LATENT, "_class_name": "EulerAncestralDiscreteScheduler", "interpolation_type": "linear", "steps_offset": 1,
        "prediction_type": "epsilon", "timestep_spacing": "trailing", "set_alpha_to_one": False,
    },
    "SVD": {
        **LATENT, "interpolation_type": "linear", "prediction_type": "v_prediction", "set_alpha_to_one": False,
        "sigma_max": 700.0, "sigma_min": 0.002, "skip_prk_steps": True, "steps_offset": 1,
        "timestep_spacing": "leading", "timestep_type": "continuous", "use_karras_sigmas": True,
    },
    "SD 3": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
    "LCM": {
        **LATENT, "_class_name": "LCMScheduler", "clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995,
        "original_inference_steps": 50, "prediction_type": "epsilon", "rescale_betas_zero_snr": False,
        "sample_max_value": 1.0, "set_alpha_to_one": True, "steps_offset": 1, "thresholding": False,
        "timestep_scaling": 10.0, "timestep_spacing": "leading",
    },
    "UniPC": {
        **LATENT, "_class_name": "UniPCMultistepScheduler", "solver_order": 2, "solver_type": "bh2", "predict_x0": True,
        "disable_corrector": [], "solver_p": None, "lower_order_final": True, "thresholding": False,
        "timestep_spacing": "linspace", "steps_offset": 1, "final_sigmas_type": "zero", "use_karras_sigmas": False,
    },
    "Heun": {**LATENT, "_class_name": "HeunDiscreteScheduler", "clip_sample_range": 1.0, "use_karras_sigmas": True},
    "DPM": {
        **LATENT, "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_order": 2,
        "euler_at_final": False, "lower_order_final": True, "lambda_min_clipped": -math.inf, "variance_type": None,
        "solver_type": "midpoint", "use_karras_sigmas": True, "use_lu_lambdas": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
def test_alphas_cumprod_equal_the_published(beta_schedule: str, zero_snr: bool) -> None:
    """Theirs are a product of 1000 fp32 factors, so they agree to fp32 alone."""
    options = {"beta_schedule": beta_schedule, "rescale_betas_zero_snr": zero_snr}
    published = DDIM(beta_start=0.00085, beta_end=0.012, **options).alphas_cumprod
    schedule = Schedule.from_config({**CONFIG, **options})
    assert schedule.num_train_timesteps == len(schedule.alphas_cumprod) == 1000
    assert schedule.alphas_cumprod == pytest.approx(published.tolist(), abs=1e-5)
    assert (schedule.alphas_cumprod[-1] == 0.0) == zero_snr
    assert (schedule.capped[-1] == ZERO_SNR_CAP) == zero_snr


@pytest.mark.parametrize("options", [{"beta_schedule": "squaredcos_cap_v2", "clip_sample": True}, {"beta_end": 0.03}])
def test_noise_levels_are_those_at_which_the_published_classes_add_noise(options: dict[str, Any]) -> None:
    scheduler, picture = DDPMScheduler(**options), torch.full((3,), 0.7)
    levels = noise_levels({**scheduler.config})
    assert len(levels) == 1000
    for level in (0, 20, 350, 999):
        expected = scheduler.add_noise(picture, torch.tensor([-1.3, 0.0, 2.0]), torch.tensor([level]))
        alpha, sigma = levels[level]
        assert expected.tolist() == pytest.approx([alpha * 0.7 + sigma * eps for eps in (-1.3, 0.0, 2.0)], abs=1e-5)
    assert levels[20].sigma < levels[350].sigma
    with pytest.raises(ValueError, match="trained_betas"):
        noise_levels({**scheduler.config, "trained_betas": [0.1, 0.2]})


@pytest.mark.parametrize("published", CLASSES)
def test_defaults_are_those_of_the_class(published: Any) -> None:
    theirs = published()
    ours = Schedule.from_config({"_class_name": published.__name__, "clip_sample": False, "skip_prk_steps": True})
    assert ours.spacing == theirs.config.get("timestep_spacing")
    assert ours.prediction == theirs.config.prediction_type
    assert ours.steps_offset == theirs.config.steps_offset
    assert ours.alphas_cumprod == pytest.approx(theirs.alphas_cumprod.tolist(), abs=1e-5)
    assert ours.set_alpha_to_one == theirs.config.get("set_alpha_to_one", True)
    assert ours.original_inference_steps == theirs.config.get("original_inference_steps", 50)
    assert ours.timestep_scaling == theirs.config.get("timestep_scaling", 10.0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name: str) -> None:
    schedule = Schedule.from_config(PUBLISHED[name])
    kinds = {"SVD": "edm", "SD 3": "flow"}
    predictions = {"SVD": "v_prediction", "SD 2.1": "v_prediction", "SD 3": "flow_prediction"}
    assert schedule.kind == kinds.get(name, "discrete")
    assert schedule.prediction == predictions.get(name, "epsilon")
    assert schedule.karras == (name in ("SVD", "Heun", "DPM"))
    assert schedule.shift == (3.0 if name == "SD 3" else 1.0)
    assert (schedule.sigma_min, schedule.sigma_max) == ((0.002, 700.0) if name == "SVD" else (None, None))


def test_own_options_of_flow_schedules() -> None:
    schedule = Schedule.from_config({**PUBLISHED["SD 3"], "clean_shift": True, "sigmas": [1, 0.75, 0.5, 0.25]})
    assert schedule.clean_shift and schedule.sigmas == (1.0, 0.75, 0.5, 0.25)
    ordinary = Schedule.from_config(PUBLISHED["SD 3"])
    assert not ordinary.clean_shift and ordinary.sigmas == () and ordinary.num_train_timesteps == 1000


def test_preconditioning_recovers_x0_from_a_perfect_network() -> None:
    """x and the three things that networks predict, at a level of each scale."""
    x0, eps = 0.7, -1.3
    for alpha, sigma in (Level(0.6, 0.8), Level(1.0, 14.6), Level(0.25, 0.75), Level(0.0, 1.0)):
        x, n = alpha * x0 + sigma * eps, math.hypot(alpha, sigma)
        outputs = {"v_prediction": (alpha * eps - sigma * x0) / n}
        outputs |= {"epsilon": eps} if alpha > 0.0 else {}
        outputs |= {"flow_prediction": eps - x0} if alpha == 1.0 - sigma else {}
        for prediction, output in outputs.items():
            c_in, c_skip, c_out = preconditioning(Level(alpha, sigma), prediction)
            assert c_skip * x + c_out * output == pytest.approx(x0, rel=1e-12)
            assert c_in == pytest.approx(1.0 if prediction == "flow_prediction" else 1.0 / n)
    with pytest.raises(ValueError, match="needs v_prediction"):
        preconditioning(Level(0.0, 1.0), "epsilon")


FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
PNDM = {"_class_name": "PNDMScheduler"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"_class_name": "DEISMultistepScheduler"}, "DEISMultistepScheduler.*EulerDiscreteScheduler"),
        ({"use_exponential_sigmas": True}, "use_exponential_sigmas=True is not supported yet"),
        ({"clip_sample": True}, "clip_sample=True"),
        ({"_class_name": "DDIMScheduler"}, "clip_sample=True"),
        ({"thresholding": True}, "thresholding"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"algorithm_type": "dpmsolver"}, "algorithm_type='dpmsolver' .* 'dpmsolver\\+\\+' or 'sde-dpmsolver"),
        ({"solver_type": "heun"}, "solver_type='heun' .* 'midpoint' or 'bh2'"),
        ({"solver_order": 3}, "solver_order=3"),
        ({"disable_corrector": [0]}, r"disable_corrector=\[0\]"),
        ({"_class_name": "UniPCMultistepScheduler", "lower_order_final": False}, "lower_order_final=False"),
        ({"_class_name": "UniPCMultistepScheduler", "predict_x0": False}, "predict_x0=False"),
        ({"final_sigmas_type": "sigma_min"}, "final_sigmas_type='sigma_min'"),
        ({"interpolation_type": "log_linear"}, "interpolation_type"),
        (PNDM, "skip_prk_steps=False"),
        ({"prediction_type": "sample"}, "prediction_type='sample'.*epsilon, v_prediction"),
        ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction'.*epsilon, v_prediction"),
        ({**FLOW, "prediction_type": "epsilon"}, "prediction_type='epsilon'.*flow_prediction"),
        ({**FLOW, "use_dynamic_shifting": True}, "use_dynamic_shifting=True"),
        ({**FLOW, "shift_terminal": 0.1}, "shift_terminal=0.1"),
        ({**FLOW, "stochastic_sampling": True}, "stochastic_sampling=True"),
        ({**FLOW, "invert_sigmas": True}, "invert_sigmas=True"),
        ({**FLOW, "use_karras_sigmas": True}, "use_karras_sigmas=True is not supported on a flow"),
        ({**FLOW, "shift": 0.0}, "shift=0.0 must be a positive"),
        ({"timestep_type": "continuous"}, "timestep_type='continuous' is supported only with"),
        ({**PUBLISHED["SVD"], "sigma_max": None}, "sigma_min and sigma_max"),
        ({**PUBLISHED["SVD"], "use_karras_sigmas": False}, "use_karras_sigmas=True"),
        ({"sigma_min": -1.0}, "sigma_min=-1.0"),
        ({"timestep_spacing": "even"}, "timestep_spacing.*leading, trailing, linspace, authors, turbo-demo"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule"),
        ({"beta_start": 0.0}, "beta_start 0.0"),
    ],
)
def test_config_that_is_not_supported_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.from_config({**CONFIG, **options})
