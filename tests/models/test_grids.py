"""The levels that a number of steps visits: published tables, and the authors' own."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from models.grids import Grid, ancestral_grid, ddim_grid, dpm_grid, euler_grid, flow_dpm_grid, flow_grid
from models.schedule import Schedule

CONFIG: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
SD3 = Schedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})


def schedule(**options: Any) -> Schedule:
    return Schedule.from_config({**CONFIG, **options})


def timesteps(grid: Grid) -> list[float]:
    return [interval.c_noise for interval in grid.intervals]


def ratios(grid: Grid) -> list[float]:
    return [interval.start.sigma / interval.start.alpha for interval in grid.intervals]


def sigmas(grid: Grid) -> list[float]:
    return [interval.start.sigma for interval in grid.intervals]


@pytest.mark.parametrize(
    ("spacing", "expected", "levels"),
    [
        ("trailing", [999.0], [14.61]),
        ("trailing", [999.0, 499.0], [14.61, 1.61]),
        ("trailing", [999.0, 749.0, 499.0, 249.0], [14.61, 4.08, 1.61, 0.69]),
        ("turbo-demo", [999.0, 899.0, 799.0, 699.0], [14.61, 8.30, 5.09, 3.32]),
        ("turbo-demo", [999.0, 899.0], [14.61, 8.30]),
    ],
)
def test_both_recipes_of_sdxl_turbo(spacing: str, expected: list[float], levels: list[float]) -> None:
    grid = ancestral_grid(schedule(timestep_spacing=spacing, steps_offset=1), len(expected))
    assert timesteps(grid) == expected
    assert ratios(grid) == pytest.approx(levels, abs=0.005)
    assert grid.intervals[-1].end == (1.0, 0.0)
    first = grid.intervals[0].start.sigma
    assert grid.init_sigma == (first if spacing == "trailing" else math.hypot(1.0, first))


def test_authors_discretisation_starts_at_the_last_training_timestep() -> None:
    """As sgm's LegacyDDPMDiscretization: steps cut to whole timesteps, and x0 counted in the first noise."""
    authors = euler_grid(schedule(timestep_spacing="authors"), 30)
    assert timesteps(authors) == np.linspace(999, 0, 30, endpoint=False).astype(int).tolist()
    assert ratios(authors)[0] == pytest.approx(14.6146, abs=1e-4)
    assert authors.init_sigma == pytest.approx(math.hypot(14.6146, 1.0), abs=1e-4)
    leading = euler_grid(schedule(timestep_spacing="leading", steps_offset=1), 30)
    assert timesteps(leading)[0] == 958.0 and leading.init_sigma == pytest.approx(11.52, abs=0.005)


@pytest.mark.parametrize("grid", [euler_grid, ddim_grid, dpm_grid])
@pytest.mark.parametrize(("spacing", "steps"), [("authors", 7), ("turbo-demo", 4), ("authors", 1)])
def test_own_spacings_are_contiguous_for_every_solver(grid: Any, spacing: str, steps: int) -> None:
    intervals = grid(schedule(timestep_spacing=spacing), steps).intervals
    assert len(intervals) == steps and intervals[0].c_noise == 999.0 and intervals[-1].end == (1.0, 0.0)
    for one, other in zip(intervals[:-1], intervals[1:], strict=True):
        assert one.end == other.start and one.c_noise_end == other.c_noise


def test_demo_has_four_steps_at_most() -> None:
    with pytest.raises(ValueError, match="turbo-demo spacing has at most 4 steps, got 5"):
        euler_grid(schedule(timestep_spacing="turbo-demo"), 5)


def test_zero_terminal_snr_changes_the_scale_and_not_the_ratio() -> None:
    """sigma/alpha is the same number in VE and VP scale."""
    options = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    ordinary = euler_grid(schedule(**options), 5)
    assert all(interval.start.alpha == 1.0 for interval in ordinary.intervals)
    capped = euler_grid(schedule(**options, rescale_betas_zero_snr=True), 5)
    for interval in capped.intervals:
        assert math.hypot(*interval.start) == pytest.approx(1.0, rel=1e-15)
    assert ratios(capped)[0] == pytest.approx(4096.0, rel=1e-7)


def test_trailing_has_as_many_steps_as_asked_for() -> None:
    """61 is one of 62 counts for which the published expression yields a step more, at timestep -1."""
    grid = euler_grid(schedule(timestep_spacing="trailing"), 61)
    assert len(grid.intervals) == 61 and timesteps(grid)[-1] == 15.0


def test_set_alpha_to_one_decides_where_ddim_ends() -> None:
    schedules = [schedule(set_alpha_to_one=value) for value in (True, False)]
    ends = [ddim_grid(each, 10).intervals[-1].end.alpha ** 2 for each in schedules]
    assert ends == pytest.approx([1.0, schedules[1].alphas_cumprod[0]], rel=1e-15)


def test_ramp_runs_between_the_ends_of_the_betas_or_those_that_are_given() -> None:
    """Equation 5 of Karras et al. 2022, and the timestep whose sigma is met."""
    for given in ({}, {"sigma_min": 0.05, "sigma_max": 10.0}):
        chosen = schedule(use_karras_sigmas=True, timestep_spacing="trailing", **given)
        table = np.sqrt((1.0 - chosen.capped) / chosen.capped)
        for grid, low in ((euler_grid, table[99]), (dpm_grid, table[0])):
            ramp = np.linspace(
                *(s ** (1 / 7) for s in (given.get("sigma_max", table[-1]), given.get("sigma_min", low))), 10
            )
            levels = grid(chosen, 10)
            assert ratios(levels) == pytest.approx((ramp**7).tolist(), rel=1e-12)
            back = np.interp(timesteps(levels), np.arange(1000), np.log(table))
            assert back.tolist() == pytest.approx(np.log(ramp**7).tolist(), abs=0.06 if grid is dpm_grid else 1e-6)
    assert ancestral_grid(schedule(use_karras_sigmas=True), 10) == euler_grid(schedule(), 10)


def test_published_table_of_stable_diffusion_3_shifts_its_lower_end_twice() -> None:
    grid = flow_grid(SD3, 4)
    assert sigmas(grid) == pytest.approx([1.0, 0.8577, 0.6022, 0.0089], abs=5e-5)
    assert timesteps(grid) == pytest.approx([1000.0 * sigma for sigma in sigmas(grid)], rel=1e-7)
    assert grid.init_sigma == 1.0 and grid.intervals[-1].end == (1.0, 0.0)


@pytest.mark.parametrize("grid", [flow_grid, flow_dpm_grid])
def test_clean_table_is_shifted_once(grid: Any) -> None:
    """The list that LADD was trained on, through the published class, which shifts what it is given."""
    published: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
    published.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    clean = grid(replace(SD3, clean_shift=True), 4)
    assert sigmas(clean) == pytest.approx(published.sigmas[:-1].tolist(), rel=1e-6)
    assert sigmas(clean) == pytest.approx([1.0, 0.9, 0.75, 0.5], rel=1e-12)
    assert timesteps(clean) == pytest.approx(published.timesteps.tolist(), rel=1e-6)
    assert grid(replace(SD3, sigmas=(1.0, 0.75, 0.5, 0.25)), 4) == clean
    assert sigmas(grid(SD3, 4)) != pytest.approx(sigmas(clean), abs=1e-4)
    assert sigmas(grid(replace(SD3, sigmas=(0.8, 0.1)), 2)) == pytest.approx([2.4 / 2.6, 0.25])


@pytest.mark.parametrize(
    ("given", "steps", "message"),
    [
        ((1.0, 0.5), 3, "own sigmas are for 2 steps, got 3"),
        ((0.5, 0.5), 2, "must fall from at most 1"),
        ((1.1, 0.5), 2, "must fall from at most 1"),
        ((1.0, 0.0), 2, "stay above 0"),
    ],
)
def test_own_sigmas_must_fall_and_be_as_many_as_the_steps(given: tuple[float, ...], steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flow_grid(replace(SD3, sigmas=given), steps)


def test_networks_see_numbers_of_fp32() -> None:
    for grid in (euler_grid(schedule(), 7), euler_grid(schedule(use_karras_sigmas=True), 7), flow_grid(SD3, 7)):
        seen = timesteps(grid)
        assert torch.tensor(seen, dtype=torch.float32).tolist() == seen
        assert any(value != round(value) for value in seen)
