"""The solver step against its reference, and the promise that a row's bits do not depend on its batch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.solver_step import solver_step, solver_step_reference
from models.plan import SOLVERS, Line, Schedule, make_plan

INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}
LATENT = (4, 5, 3)
EPSILON = {"_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
SCHEDULES = (
    Schedule.from_config(EPSILON),
    Schedule.from_config({**EPSILON, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
)


def random_arguments(
    rows: int, lanes: int, slots: int, latent: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rows + 10 * lanes + 100 * slots)
    shapes = [(rows, slots, *latent), (rows, lanes, *latent), (rows, lanes), (rows,), (rows,)]
    shapes += [(rows, slots, slots), (rows, slots), (rows,), (rows, *latent)]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def line_arguments(
    lines: Sequence[Line], lanes: int, slots: int, seeds: Sequence[int], dtype: torch.dtype
) -> list[Tensor]:
    """What a caller makes of lines: coefficients, and each row's own tensors, padded with zeros to lanes and slots."""
    rows = len(lines)
    state, outputs = torch.zeros(rows, slots, *LATENT), torch.zeros(rows, lanes, *LATENT)
    noise, weights = torch.zeros(rows, *LATENT), torch.zeros(rows, lanes, dtype=torch.float64)
    a, b = torch.zeros(rows, slots, slots, dtype=torch.float64), torch.zeros(rows, slots, dtype=torch.float64)
    for row, (line, seed) in enumerate(zip(lines, seeds, strict=True)):
        generator = torch.Generator().manual_seed(seed)
        k, n = len(line.b), len(line.lanes)
        state[row, :k] = torch.randn(k, *LATENT, generator=generator)
        outputs[row, :n] = torch.randn(n, *LATENT, generator=generator)
        if line.draw:
            noise[row] = torch.randn(LATENT, generator=generator)
        weights[row, :n] = torch.tensor(line.lanes, dtype=torch.float64)
        a[row, :k, :k] = torch.tensor(line.a, dtype=torch.float64)
        b[row, :k] = torch.tensor(line.b, dtype=torch.float64)
    c_skip, c_out, s = (torch.tensor([getattr(x, name) for x in lines]) for name in ("c_skip", "c_out", "s"))
    return [x.to(dtype) for x in (state, outputs, weights, c_skip, c_out, a, b, s, noise)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("latent", [(4, 8, 8), (1, 1, 1), (3, 7, 5), (4, 3, 5, 2)])  # the last one is a clip
@pytest.mark.parametrize(("rows", "lanes", "slots"), [(1, 1, 1), (2, 2, 2), (3, 4, 4), (17, 2, 3)])
def test_equals_the_reference(
    rows: int, lanes: int, slots: int, latent: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    arguments = random_arguments(rows, lanes, slots, latent, dtype)
    result = solver_step(*arguments)
    in_fp64 = solver_step_reference(*(x.double() for x in arguments))
    assert result.dtype == dtype and result.shape == arguments[0].shape
    assert ((result - in_fp64).abs().max() / in_fp64.abs().max()) < tolerance
    same_dtype = solver_step_reference(*arguments)
    assert ((same_dtype - in_fp64).abs().max() / in_fp64.abs().max()) < tolerance


row = st.tuples(
    st.sampled_from(list(SOLVERS)),
    st.sampled_from(SCHEDULES),
    st.integers(1, 25),
    st.floats(0, 1),
    st.sampled_from([1, 6]),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None, max_examples=20)
@given(rows=st.lists(row, min_size=1, max_size=9))
def test_a_row_has_the_same_bits_in_every_batch(
    dtype: torch.dtype, rows: list[tuple[str, Schedule, int, float, int]]
) -> None:
    """Rows of different solvers, step counts and lanes, padded to a common shape, against each of them unpadded."""
    lines = []
    for solver, schedule, steps, place, guidance in rows:
        plan = make_plan(schedule, solver, steps, guidance, eta=0.5 if solver == "ddim" else 0.0)
        lines.append(plan.lines[int(place * (steps - 1))])
    seeds = range(len(lines))
    lanes, slots = max(len(x.lanes) for x in lines), max(len(x.b) for x in lines)
    together = solver_step(*line_arguments(lines, lanes, slots, seeds, dtype))
    for seed, line in zip(seeds, lines, strict=True):
        alone_arguments = line_arguments([line], len(line.lanes), len(line.b), [seed], dtype)
        alone = solver_step(*alone_arguments)[0]
        padded = together[seed, : len(line.b)]
        assert torch.equal(alone.view(INTEGER[dtype]), padded.contiguous().view(INTEGER[dtype]))
        assert torch.equal(together[seed, len(line.b) :], torch.zeros_like(together[seed, len(line.b) :]))
        reference = solver_step_reference(*(x.double() for x in alone_arguments))[0]
        assert (alone - reference).abs().max() / reference.abs().max() < (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("rows", [2, 3, 4, 7, 8, 16, 33])
def test_batch_size_changes_no_bit(rows: int) -> None:
    arguments = random_arguments(33, 2, 2, (4, 16, 16), torch.float32)
    alone = torch.cat([solver_step(*(x[i : i + 1] for x in arguments)) for i in range(rows)])
    together = solver_step(*(x[:rows] for x in arguments))
    assert torch.equal(alone.view(torch.int32), together.view(torch.int32))


def test_half_precision_outputs_are_mixed_in_fp32() -> None:
    arguments = list(random_arguments(2, 2, 2, (4, 8, 8), torch.float32))
    arguments[1] = arguments[1].bfloat16()
    result = solver_step(*arguments)
    arguments[1] = arguments[1].float()
    assert result.dtype == torch.float32 and torch.equal(result, solver_step(*arguments))


def test_state_is_left_as_it_was() -> None:
    arguments = random_arguments(2, 2, 2, (4, 8, 8), torch.float32)
    before = [x.clone() for x in arguments]
    solver_step(*arguments)
    assert all(torch.equal(x, y) for x, y in zip(arguments, before, strict=True))


def test_wrong_shapes_are_caught() -> None:
    arguments = list(random_arguments(2, 2, 2, (4, 8, 8), torch.float32))
    arguments[1] = arguments[1][:1]
    with pytest.raises(AssertionError):
        solver_step(*arguments)
