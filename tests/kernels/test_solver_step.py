"""The solver step against its reference, and the promise that a row's bits do not depend on its batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.guidance_rescale import guidance_rescale, mix_lanes
from kernels.solver_step import solver_step, solver_step_reference
from models.plan import SOLVERS, Guidance, Line, Schedule, make_plan

INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}
CLIP = (3, 2, 5, 3)
EPSILON = {"_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
FLOW = Schedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
SCHEDULES = (
    Schedule.from_config(EPSILON),
    Schedule.from_config({**EPSILON, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
)
PER_FRAME = Guidance(3.0, shape="linear", frames=CLIP[0])


def random_arguments(
    rows: int, lanes: int, slots: int, latent: Sequence[int], dtype: torch.dtype, per_frame: bool = False
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rows + 10 * lanes + 100 * slots)
    weights = (rows, lanes, latent[0]) if per_frame else (rows, lanes)
    shapes: list[tuple[int, ...]] = [(rows, slots, *latent), (rows, lanes, *latent), weights, (rows,), (rows,)]
    shapes += [(rows, slots, slots), (rows, slots), (rows,), (rows, *latent)]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def random_keep(
    rows: int, latent: Sequence[int], dtype: torch.dtype, nothing: Sequence[int] = ()
) -> tuple[Tensor, ...]:
    """Mask, picture with noise, and level of inpainting rows; the rows ``nothing`` are of another kind."""
    generator = torch.Generator().manual_seed(rows)
    mask = torch.rand(rows, *(1,) * (len(latent) - 2), *latent[-2:], generator=generator).mul(2).sub(0.5).clamp(0, 1)
    kept, level = torch.randn(rows, 2, *latent, generator=generator), torch.rand(rows, 2, generator=generator)
    for row in nothing:
        mask[row], kept[row], level[row] = 1.0, 0.0, 0.0
    return mask.to(dtype), kept.to(dtype), level.to(dtype)


def line_arguments(
    lines: Sequence[Line], lanes: int, slots: int, seeds: Sequence[int], dtype: torch.dtype, per_frame: bool
) -> list[Tensor]:
    """What a caller makes of lines: coefficients, and each row's own tensors, padded with zeros to lanes and slots."""
    rows = len(lines)
    state, outputs = torch.zeros(rows, slots, *CLIP), torch.zeros(rows, lanes, *CLIP)
    noise = torch.zeros(rows, *CLIP)
    weights = torch.zeros((rows, lanes, CLIP[0]) if per_frame else (rows, lanes), dtype=torch.float64)
    a, b = torch.zeros(rows, slots, slots, dtype=torch.float64), torch.zeros(rows, slots, dtype=torch.float64)
    for row, (line, seed) in enumerate(zip(lines, seeds, strict=True)):
        generator = torch.Generator().manual_seed(seed)
        k, n = len(line.b), len(line.lanes)
        state[row, :k] = torch.randn(k, *CLIP, generator=generator)
        outputs[row, :n] = torch.randn(n, *CLIP, generator=generator)
        if line.draw:
            noise[row] = torch.randn(CLIP, generator=generator)
        for lane, each in enumerate(line.lanes):
            weights[row, lane] = torch.tensor(each.weight, dtype=torch.float64)
        a[row, :k, :k] = torch.tensor(line.a, dtype=torch.float64)
        b[row, :k] = torch.tensor(line.b, dtype=torch.float64)
    c_skip, c_out, s = (torch.tensor([getattr(x, name) for x in lines]) for name in ("c_skip", "c_out", "s"))
    return [x.to(dtype) for x in (state, outputs, weights, c_skip, c_out, a, b, s, noise)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("latent", [(4, 8, 8), (1, 1, 1), (3, 7, 5), (4, 3, 5, 2), (5, 4, 3, 3)])  # two are clips
@pytest.mark.parametrize(("rows", "lanes", "slots"), [(1, 1, 1), (2, 2, 2), (3, 4, 4), (17, 2, 3)])
def test_equals_the_reference(
    rows: int, lanes: int, slots: int, latent: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    arguments = random_arguments(rows, lanes, slots, latent, dtype, per_frame=latent[0] == 5)
    result = solver_step(*arguments)
    in_fp64 = solver_step_reference(*(x.double() for x in arguments))
    assert result.dtype == dtype and result.shape == arguments[0].shape
    assert ((result - in_fp64).abs().max() / in_fp64.abs().max()) < tolerance
    same_dtype = solver_step_reference(*arguments)
    assert ((same_dtype - in_fp64).abs().max() / in_fp64.abs().max()) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("latent", [(4, 8, 8), (5, 4, 5, 3)])  # one is a clip, with one mask for its frames
def test_inpainting_equals_the_reference(latent: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    arguments, keep = random_arguments(3, 2, 2, latent, dtype), random_keep(3, latent, dtype, nothing=[1])
    result, plain = solver_step(*arguments, *keep), solver_step(*arguments)
    in_fp64 = solver_step_reference(*(x.double() for x in (*arguments, *keep)))
    assert ((result - in_fp64).abs().max() / in_fp64.abs().max()) < tolerance
    x, y = in_fp64[0, 0], keep[2][0, 0].double() * keep[1][0, 0] + keep[2][0, 1].double() * keep[1][0, 1]
    mask = keep[0][0].double().expand_as(x)
    assert (mask == 1.0).any() and (mask == 0.0).any()
    assert torch.equal(result[0, 0][mask == 1.0], plain[0, 0][mask == 1.0])
    assert ((x - y)[mask == 0.0].abs() < tolerance).all()
    assert torch.equal(result[:, 1:], plain[:, 1:])  # the history is not blended
    assert [torch.equal(a, b) for a, b in zip(result, plain, strict=True)] == [False, True, False]


@pytest.mark.parametrize("factor", [1.0, -0.0])
def test_a_row_that_keeps_nothing_has_its_bits_beside_one_that_keeps(factor: float) -> None:
    """Signs of zeros too."""
    arguments, keep = random_arguments(3, 2, 1, (4, 8, 8), torch.float32), random_keep(3, (4, 8, 8), torch.float32)
    for tensor in (arguments[0], arguments[1], arguments[8]):
        tensor[1] *= factor
    nothing = random_keep(3, (4, 8, 8), torch.float32, nothing=[1])
    without, kept, mixed = (solver_step(*arguments, *last).view(torch.int32) for last in ((), keep, nothing))
    assert torch.equal(without[1], mixed[1]) and torch.equal(kept[0], mixed[0]) and torch.equal(kept[2], mixed[2])
    assert not torch.equal(without[1], kept[1])


row = st.tuples(
    st.sampled_from(list(SOLVERS)),
    st.integers(0, len(SCHEDULES) - 1),  # not the schedule itself: hypothesis would print its thousand numbers
    st.integers(1, 25),
    st.floats(0, 1),
    st.sampled_from([Guidance(1), Guidance(6), PER_FRAME, Guidance(6, skip_scale=2.5, skip_interval=(0.0, 1.0))]),
    st.booleans(),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None, max_examples=20)
@given(rows=st.lists(row, min_size=1, max_size=9))
def test_a_row_has_the_same_bits_in_every_batch(
    dtype: torch.dtype, rows: list[tuple[str, int, int, float, Guidance, bool]]
) -> None:
    """Rows of different solvers, step counts and lanes, some of which keep part of a picture, padded to a common shape,
    against each of them unpadded."""
    lines = []
    for solver, number, steps, place, guidance, _ in rows:
        schedule = FLOW if solver.startswith("flow") else SCHEDULES[number]
        plan = make_plan(schedule, solver, steps, guidance, eta=0.5 if solver == "ddim" else 0.0)
        lines.append(plan.lines[int(place * (len(plan.lines) - 1))])
    framed = [any(isinstance(lane.weight, tuple) for lane in line.lanes) for line in lines]
    seeds = range(len(lines))
    lanes, slots = max(len(x.lanes) for x in lines), max(len(x.b) for x in lines)
    keeps = [keeps_picture for *_, keeps_picture in rows]
    keep = random_keep(len(rows), CLIP, dtype, nothing=[seed for seed in seeds if not keeps[seed]])
    last = keep if any(keeps) else ()
    together = solver_step(*line_arguments(lines, lanes, slots, seeds, dtype, any(framed)), *last)
    for seed, line in zip(seeds, lines, strict=True):
        alone_arguments = line_arguments([line], len(line.lanes), len(line.b), [seed], dtype, framed[seed])
        alone_arguments += [x[seed : seed + 1] for x in keep] if keeps[seed] else []
        alone = solver_step(*alone_arguments)[0]
        padded = together[seed, : len(line.b)]
        assert torch.equal(alone.view(INTEGER[dtype]), padded.contiguous().view(INTEGER[dtype]))
        assert torch.equal(together[seed, len(line.b) :], torch.zeros_like(together[seed, len(line.b) :]))
        reference = solver_step_reference(*(x.double() for x in alone_arguments))[0]
        # In units of the terms that are summed: near sigma = 0 they are much larger than what is left of them.
        terms = solver_step_reference(*(x.double().abs() for x in alone_arguments))[0]
        assert ((alone - reference).abs() <= (1e-14 if dtype == torch.float64 else 2e-6) * terms).all()


@pytest.mark.parametrize("rows", [2, 3, 4, 7, 8, 16, 33])
def test_batch_size_changes_no_bit(rows: int) -> None:
    latent = (4, 16, 16)
    arguments = random_arguments(33, 2, 2, latent, torch.float32) + random_keep(33, latent, torch.float32)
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


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_what_is_kept_comes_whole(left_out: int) -> None:
    keep: list[Tensor | None] = list(random_keep(2, (4, 8, 8), torch.float32))
    keep[left_out] = None
    with pytest.raises(AssertionError):
        solver_step(*random_arguments(2, 2, 2, (4, 8, 8), torch.float32), *keep)


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 4, 8, 8), (1, 1, 8, 8), (2, 1, 4, 8)])
def test_a_mask_of_another_shape_is_caught(shape: tuple[int, ...]) -> None:
    _, *rest = random_keep(2, (4, 8, 8), torch.float32)
    with pytest.raises(AssertionError):
        solver_step(*random_arguments(2, 2, 2, (4, 8, 8), torch.float32), torch.ones(shape), *rest)


def test_equal_weights_for_all_frames_are_one_weight() -> None:
    arguments = list(random_arguments(3, 2, 2, (5, 4, 3, 3), torch.float32))
    once = solver_step(*arguments)
    arguments[2] = arguments[2][:, :, None].expand(-1, -1, 5).contiguous()
    assert torch.equal(solver_step(*arguments), once)
    arguments[2][:, :, 3] += 0.25
    changed = solver_step(*arguments)
    assert torch.equal(changed[:, :, :3], once[:, :, :3]) and not torch.equal(changed[:, :, 3], once[:, :, 3])


@pytest.mark.parametrize("shape", [(2,), (3, 3), (3, 2, 4)])
def test_weights_of_another_shape_are_caught(shape: tuple[int, ...]) -> None:
    arguments = list(random_arguments(3, 2, 2, (5, 4, 3, 3), torch.float32))
    arguments[2] = torch.ones(shape)
    with pytest.raises(AssertionError):
        solver_step(*arguments)


def test_rescale_before_the_step_is_the_step_of_the_rescaled_output() -> None:
    """A row without rescale has the bits of the step alone, whatever the others of its batch do."""
    state, outputs, weights, *rest = random_arguments(3, 2, 2, (4, 8, 8), torch.float32)
    phi = torch.tensor([0.0, 0.7, 0.0])
    guided = guidance_rescale(mix_lanes(outputs, weights), outputs[:, 1], phi)
    rescaled = solver_step(state, guided[:, None], torch.ones(3, 1), *rest)
    plain = solver_step(state, outputs, weights, *rest)
    same = [torch.equal(x, y) for x, y in zip(rescaled, plain, strict=True)]
    assert same == [True, False, True]
    assert np.isfinite(rescaled.numpy()).all()
