"""Rows in batches: alone or together, cut or uncut, whole or kept in part, on a network small enough to be exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.conditioners.condition import Condition
from models.families.row import Checkpoint, Row, advance, checkpoint, evaluate_part, resume, start
from models.guidance import Guidance, Lane
from models.plan import SOLVERS, Schedule, make_plan, supported_solvers

SHAPE = (3, 4, 5)
FRAMES = 4
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}
DISCRETE = Schedule.from_config({"_class_name": "EulerDiscreteScheduler", **BETAS})
FLOW = Schedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
GUIDANCES = (
    Guidance(1.0),
    Guidance(4.0),
    Guidance(4.0, rescale=0.7),
    Guidance(3.0, interval=(0.2, 0.7)),
    Guidance(4.0, skip_scale=2.0, skip_interval=(0.0, 0.6)),
    Guidance(2.0, rescale=0.5, skip_scale=1.5, skip_interval=(0.3, 1.0)),
)


def network(factor: float):  # type: ignore[no-untyped-def]
    """A network whose lanes do not touch: it bends x by its time and its condition, element by element."""

    def call(x: Tensor, c_noise: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        ones = (-1,) + (1,) * (x.dim() - 1)
        pull = context.mean((1, 2)).reshape(ones) + 0.1 * vector.sum(1).reshape(ones)
        return factor * torch.tanh(x + pull) + 0.3 * torch.sin(x * 2.0 + c_noise.reshape(ones) / 500.0)

    return call


NETWORKS = {"unet": network(1.0), "unet/skip-layers": network(0.6)}


def conditions(seed: int) -> dict[str, Condition]:
    generator = torch.Generator().manual_seed(seed)

    def one() -> Condition:
        context = torch.randn(3, 2, generator=generator, dtype=torch.float64)
        return Condition(context, torch.randn(2, generator=generator, dtype=torch.float64))

    return {"positive": one(), "negative": one()}


def new_row(solver: str, steps: int, guidance: Guidance, seed: int, shape: tuple[int, ...] = SHAPE) -> Row:
    schedule = DISCRETE if solver in supported_solvers(DISCRETE) else FLOW
    plan = make_plan(schedule, solver, steps, guidance, eta=0.6 if solver == "ddim" else 0.0)
    row = start(plan, conditions(seed), torch.Generator().manual_seed(seed), shape)
    row.state = row.state.double()
    return row


def finish(rows: list[Row], padded_lanes: int = 0) -> list[Tensor]:
    while unfinished := [row for row in rows if not row.finished]:
        advance(NETWORKS, unfinished, padded_lanes)
    return [row.state for row in rows]


def largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


CHOICE = st.tuples(st.sampled_from(sorted(SOLVERS)), st.integers(2, 7), st.sampled_from(GUIDANCES), st.integers(0, 99))


@settings(deadline=None, max_examples=25)
@given(st.lists(CHOICE, min_size=2, max_size=5), st.sampled_from((0, 8)))
def test_rows_of_all_kinds_in_one_batch_equal_the_same_rows_alone(
    choices: list[tuple[str, int, Guidance, int]], padded_lanes: int
) -> None:
    together = finish([new_row(*choice) for choice in choices], padded_lanes)
    for choice, state in zip(choices, together, strict=True):
        (alone,) = finish([new_row(*choice)])
        assert largest(state, alone) < 1e-12


def test_a_row_differs_by_everything_that_is_its_own() -> None:
    base = ("dpm++2m", 5, Guidance(4.0), 1)
    (reference,) = finish([new_row(*base)])
    for other in (("euler", *base[1:]), ("dpm++2m", 6, *base[2:]), (*base[:2], Guidance(2.0), 1), (*base[:3], 2)):
        (state,) = finish([new_row(*other)])
        assert largest(state[0], reference[0]) > 1e-3


@pytest.mark.parametrize("guidance", GUIDANCES[1:], ids=range(1, len(GUIDANCES)))
def test_every_guidance_changes_the_result(guidance: Guidance) -> None:
    (plain,), (guided,) = finish([new_row("euler", 6, Guidance(1.0), 1)]), finish([new_row("euler", 6, guidance, 1)])
    assert largest(guided, plain) > 1e-3


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_cut_at_every_line_and_resumed_equals_the_uncut_run_exactly(solver: str) -> None:
    guidance = Guidance(3.0, rescale=0.3)
    (uncut,) = finish([new_row(solver, 5, guidance, 7)])
    row = new_row(solver, 5, guidance, 7)
    while not row.finished:
        saved = checkpoint(row)
        (resumed,) = finish([resume(new_row(solver, 5, guidance, 7), saved)])
        assert torch.equal(resumed, uncut)
        advance(NETWORKS, [row])
        assert not torch.equal(saved.state, row.state)  # what was saved is not the row's own memory


def test_resuming_without_the_draws_made_would_differ() -> None:
    row = new_row("euler-ancestral", 5, Guidance(1.0), 7)
    advance(NETWORKS, [row])
    advance(NETWORKS, [row])
    forgetful = dataclasses.replace(
        new_row("euler-ancestral", 5, Guidance(1.0), 7), state=row.state.clone(), line=row.line
    )
    (right,), (wrong,) = (
        finish([resume(new_row("euler-ancestral", 5, Guidance(1.0), 7), checkpoint(row))]),
        finish([forgetful]),
    )
    assert largest(wrong, right) > 1e-3


@pytest.mark.parametrize("line", [-1, 6])
def test_a_checkpoint_of_another_row_is_refused(line: int) -> None:
    row = new_row("euler", 5, Guidance(1.0), 7)
    with pytest.raises(ValueError, match="checkpoint"):
        resume(row, Checkpoint(row.state, line))
    with pytest.raises(ValueError, match="checkpoint"):
        resume(row, Checkpoint(row.state[:, :1], 0))


def test_weights_a_frame_weigh_frame_by_frame() -> None:
    shape = (FRAMES, *SHAPE)
    linear = Guidance(3.0, 1.0, "linear", FRAMES)
    clip, still = new_row("euler", 4, linear, 3, shape), new_row("euler", 4, Guidance(2.0), 4, shape)
    together = finish([clip, still])[0][0]
    start_state = new_row("euler", 4, linear, 3, shape).state
    for frame, scale in enumerate(torch.linspace(1.0, 3.0, FRAMES, dtype=torch.float64).tolist()):
        alone = new_row("euler", 4, Guidance(scale), 3, shape)
        alone.state = start_state.clone()
        (state,) = finish([alone])
        assert largest(together[frame], state[0, frame]) < 1e-12
        assert frame == 0 or largest(together[0], state[0, 0]) > 1e-4


def test_guidance_of_another_number_of_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="guidance frames=3, expected the 4 of the row"):
        new_row("euler", 4, Guidance(3.0, 1.0, "linear", 3), 3, (FRAMES, *SHAPE))


def test_rescale_of_one_row_asks_nothing_of_another() -> None:
    """A lane that is not called positive, beside a row whose guidance is rescaled."""
    plan = make_plan(DISCRETE, "euler", 3, Guidance(1.0))
    lines = tuple(dataclasses.replace(line, lanes=(Lane("negative", 1.0),)) for line in plan.lines)

    def other() -> Row:
        row = start(dataclasses.replace(plan, lines=lines), conditions(2), torch.Generator().manual_seed(2), SHAPE)
        row.state = row.state.double()
        return row

    rescaled = ("euler", 3, Guidance(4.0, rescale=0.7), 1)
    for state, alone in zip(finish([new_row(*rescaled), other()]), (new_row(*rescaled), other()), strict=True):
        assert largest(state, finish([alone])[0]) < 1e-12


@pytest.mark.parametrize("guidance", [Guidance(4.0), Guidance(4.0, rescale=0.7)], ids=["plain", "rescaled"])
def test_a_network_in_half_precision_takes_no_digit_from_its_neighbour(guidance: Guidance) -> None:
    def half(*inputs: Tensor) -> Tensor:
        return NETWORKS["unet"](*inputs).bfloat16()

    def exact() -> Row:
        plan = make_plan(DISCRETE, "euler", 3, guidance, network="exact")
        return dataclasses.replace(new_row("euler", 3, guidance, 1), plan=plan)

    networks = {"unet": half, "exact": NETWORKS["unet"]}
    rounded, together, alone = new_row("euler", 3, guidance, 1), exact(), exact()
    advance(networks, [rounded, together])
    advance(networks, [alone])
    assert rounded.state.dtype == torch.float64
    assert largest(together.state, alone.state) < 1e-12
    assert 1e-4 < largest(rounded.state, alone.state) < 0.1


def test_a_network_that_is_not_there_is_named() -> None:
    row = new_row("euler", 4, Guidance(2.0, skip_scale=1.0, skip_interval=(0.0, 1.0)), 1)
    advance({"unet": NETWORKS["unet"]}, [row])
    with pytest.raises(ValueError, match="needs the network 'unet/skip-layers', which is not there; known: unet"):
        advance({"unet": NETWORKS["unet"]}, [row])


def test_inpainting_keeps_the_picture_outside_the_mask() -> None:
    plan = make_plan(DISCRETE, "euler", 6, Guidance(3.0))
    generator = torch.Generator().manual_seed(1)
    picture, mask = torch.randn(SHAPE, generator=generator), torch.zeros(1, *SHAPE[1:])
    mask[:, :2] = 1.0
    row = start(plan, conditions(5), generator, SHAPE, picture, mask)
    seen = []
    while not row.finished:
        before = plan.lines[row.line]
        advance(NETWORKS, [row])
        seen.append(row.state[0])
        level = before.alpha * picture + before.sigma * row.keep.noise  # type: ignore[union-attr]
        torch.testing.assert_close(row.state[0][:, 2:], level[:, 2:].to(row.state.dtype))
    torch.testing.assert_close(row.state[0][:, 2:], picture[:, 2:])
    assert largest(row.state[0][:, :2], picture[:, :2]) > 0.1


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_an_inpainting_row_and_its_neighbours_have_their_bits(device: str, rescale: float) -> None:
    """Rows in fp32 that begin, keep and end differently: alone, and all of them together."""
    generator = torch.Generator().manual_seed(3)
    pictures, mask = torch.randn(3, *SHAPE, generator=generator), torch.rand(1, *SHAPE[1:], generator=generator)
    pictures, mask = pictures.to(device), mask.to(device)
    masks = (mask, None, (mask > 0.5).float())

    def call(x: Tensor, c_noise: Tensor, context: Tensor, _vector: Tensor) -> Tensor:
        """Row by row: torch's tanh of a batch and of a row can differ in the last bit."""
        return torch.stack([torch.tanh(one + some.mean().float()) for one, some in zip(x, context, strict=True)])

    def new() -> list[Row]:
        rows = []
        for i, (solver, steps, kept) in enumerate(
            zip(("dpm++2m", "euler", "euler-ancestral"), (4, 6, 5), masks, strict=True)
        ):
            plan = make_plan(DISCRETE, solver, steps, Guidance(3.0, rescale=rescale * (i == 2)))
            own = {name: condition.to(torch.device(device)) for name, condition in conditions(i).items()}
            rows.append(start(plan, own, torch.Generator().manual_seed(i), SHAPE, pictures[i], kept))
        return rows

    def run(rows: list[Row]) -> list[Tensor]:
        while unfinished := [row for row in rows if not row.finished]:
            advance({"unet": call}, unfinished)
        return [row.state[0] for row in rows]

    together = run(new())
    for row, state in zip(new(), together, strict=True):
        (alone,) = run([row])
        assert torch.equal(alone.view(torch.int32), state.view(torch.int32))
    kept = masks[2] == 0.0  # type: ignore[operator]
    assert torch.equal(together[2][:, kept[0]], pictures[2][:, kept[0]])
    assert not torch.equal(together[1][:, kept[0]], pictures[1][:, kept[0]])


def test_from_a_picture_begins_at_its_level_and_needs_one() -> None:
    plan = make_plan(DISCRETE, "euler", 6, Guidance(1.0), from_picture=True, strength=0.4)
    picture = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    row = start(plan, conditions(5), torch.Generator().manual_seed(2), SHAPE, picture)
    noise = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(2))[0]
    torch.testing.assert_close(row.state[0], plan.init_alpha * picture + plan.init_sigma * noise)
    assert len(plan.lines) == 2
    with pytest.raises(ValueError, match="picture"):
        start(plan, conditions(5), torch.Generator().manual_seed(2), SHAPE)
    with pytest.raises(ValueError, match="picture"):
        whole = make_plan(DISCRETE, "euler", 6, Guidance(1.0))
        start(whole, conditions(5), torch.Generator().manual_seed(2), SHAPE, mask=torch.ones(1, *SHAPE[1:]))


def test_channels_of_a_condition_come_behind_the_scaled_latent() -> None:
    seen = []

    def wide(x: Tensor, *inputs: Tensor) -> Tensor:
        seen.append(x)
        return NETWORKS["unet"](x[:, : SHAPE[0]], *inputs)

    row = new_row("euler", 2, Guidance(2.0), 1)
    extra = torch.full((2, *SHAPE[1:]), 7.0)
    row.conditions = {
        "positive": row.conditions["positive"].with_concat(extra),
        "negative": row.conditions["negative"].with_concat(torch.zeros_like(extra)),
    }
    before = row.state[0].clone()
    advance({"unet": wide}, [row])
    (x,) = seen
    assert x.shape == (2, SHAPE[0] + 2, *SHAPE[1:])
    torch.testing.assert_close(x[:, : SHAPE[0]], (before * row.plan.lines[0].c_in).expand(2, *SHAPE))
    assert float(x[0, SHAPE[0] :].abs().max()) == 0.0 and float(x[1, SHAPE[0] :].min()) == 7.0


def test_a_refiner_has_conditions_of_its_own() -> None:
    """Its context has another width, as SDXL's refiner has; equal networks under equal conditions equal one network."""

    def needs(width: int) -> Callable[..., Tensor]:
        def call(x: Tensor, c_noise: Tensor, context: Tensor, vector: Tensor) -> Tensor:
            assert context.shape[2] == width
            return NETWORKS["unet"](x, c_noise, context, vector)

        return call

    def widened(condition: Condition) -> Condition:
        return Condition(condition.context.repeat(1, 2), condition.vector)  # the network takes the mean

    plan = make_plan(DISCRETE, "euler", 6, Guidance(3.0, rescale=0.4), refiner=("refiner", 0.5))
    own = conditions(3)
    both = {**own, **{f"refiner/{name}": widened(condition) for name, condition in own.items()}}
    row = start(plan, both, torch.Generator().manual_seed(3), SHAPE)
    row.state = row.state.double()
    tokens = []
    while not row.finished:
        tokens.append(row.tokens)
        advance({"unet": needs(2), "refiner": needs(4)}, [row])
    (single,) = finish([new_row("euler", 6, Guidance(3.0, rescale=0.4), 3)])
    assert largest(row.state, single) < 1e-12 and set(tokens) == {3}
    alone = start(plan, own, torch.Generator().manual_seed(3), SHAPE)
    with pytest.raises(KeyError, match="refiner/"):
        while not alone.finished:
            advance({"unet": needs(2), "refiner": needs(4)}, [alone])


def test_a_failed_evaluation_changes_no_row() -> None:
    def broken(*_: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    rows = [new_row("euler-ancestral", 4, Guidance(2.0), seed) for seed in (1, 2)]
    advance(NETWORKS, rows)
    before = [(row.state.clone(), row.line, row.generator.get_state()) for row in rows]
    with pytest.raises(RuntimeError, match="out of memory"):
        advance({"unet": broken}, rows)
    for row, (state, line, generator_state) in zip(rows, before, strict=True):
        assert torch.equal(row.state, state) and row.line == line
        assert torch.equal(row.generator.get_state(), generator_state)


@pytest.mark.parametrize("guidance", GUIDANCES[1:])
def test_lanes_in_several_passes_equal_one_evaluation(guidance: Guidance) -> None:
    one, other = (new_row("dpm++2m", 6, guidance, 5) for _ in range(2))
    parted = 0
    while not other.finished:
        line, lanes = other.line, other.lanes_left
        while other.lanes_left > 1:
            evaluate_part(NETWORKS, other, 1)
            assert (other.line, other.lanes_left) == (line, lanes := lanes - 1)
            parted += 1
        advance(NETWORKS, [other])
    finish([one])
    assert torch.equal(one.state, other.state) and parted >= 2


@pytest.mark.parametrize("lanes", [0, 2, 3])
def test_a_part_is_neither_nothing_nor_all(lanes: int) -> None:
    row = new_row("euler", 4, Guidance(2.0), 1)
    with pytest.raises(ValueError, match=f"lanes={lanes}, expected at least 1 and fewer than the 2"):
        evaluate_part(NETWORKS, row, lanes)
    assert row.lanes_left == 2


def test_networks_name_the_variants_of_the_next_line() -> None:
    row = new_row("euler", 4, Guidance(2.0, skip_scale=1.0, skip_interval=(0.3, 0.9)), 1)
    found = []
    while not row.finished:
        found.append(row.networks)
        advance(NETWORKS, [row])
    assert found[0] == {"unet"} and found[2] == {"unet", "unet/skip-layers"}
