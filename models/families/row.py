"""A row: one picture or clip in flight. Every system advances its rows by the one function here.

A row is its plan, its conditions by name, its state y = (x, h1 .. hK) and its noise generator; nothing it depends on
comes from the batch it happens to run in. Rows of different solvers, lengths, guidance and lanes share an evaluation.

A row lives on the device of its conditions, in fp32 whatever its network computes in. Only its generator is a CPU's on
every machine, so that a seed draws the same noise everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.guidance_rescale import guidance_rescale, mix_lanes
from kernels.solver_step import solver_step
from models.conditioners.condition import Condition
from models.families.keep import Keep, batched
from models.guidance import Lane
from models.plan import Line, Plan

Denoiser = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x [B, (T,) C, h, w], c_noise [B], context [B, N, D], vector [B, (T,) V]) -> [B, (T,) C', h, w]: a torch module or an
engine."""


@dataclass
class Row:
    """One picture or clip in flight."""

    plan: Plan
    conditions: Mapping[str, Condition]
    """By the names that the plan's lanes use."""
    state: Tensor
    """[K + 1, C, h, w] or [K + 1, T, C, h, w] fp32: the latent and the solver's history."""
    generator: torch.Generator
    """On the CPU."""
    keep: Keep | None = None
    line: int = 0
    """The next line of the plan."""
    evaluated: tuple[Tensor, ...] = ()
    """Outputs of the first lanes of that line, where it runs in several passes."""

    @property
    def lanes_left(self) -> int:
        """Lanes that the next line has still to run; the row is not finished."""
        return len(self.plan.lines[self.line].lanes) - len(self.evaluated)

    @property
    def finished(self) -> bool:
        """Whether ``state[0]`` is the clean latent."""
        return self.line == len(self.plan.lines)

    @property
    def networks(self) -> frozenset[str]:
        """Names of the networks that the next line evaluates."""
        line = self.plan.lines[self.line]
        return frozenset(network_of(line, lane) for lane in line.lanes)

    @property
    def tokens(self) -> int:
        """Length of the context of the next line's lanes."""
        return len(self.conditions[self.plan.lines[self.line].lanes[0].condition].context)


@dataclass(frozen=True)
class Checkpoint:
    """Where a row stands, apart from what its request says."""

    state: Tensor
    """On the row's device, or wherever it was read to."""
    line: int


def checkpoint(row: Row) -> Checkpoint:
    """Where the row stands now; the row may go on."""
    return Checkpoint(row.state.clone(), row.line)


def resume(fresh: Row, saved: Checkpoint) -> Row:
    """Put a row that was just started from the same request where ``saved`` says, and return it.

    The draws of the lines before are made again, so that the next one is the one that the uncut run would have made.

    Raises:
        ValueError: the checkpoint is another row's: its state has another shape, or its line is not in the plan.
    """
    if fresh.line or saved.state.shape != fresh.state.shape or not 0 <= saved.line <= len(fresh.plan.lines):
        shapes = f"state {tuple(saved.state.shape)}, line {saved.line}"
        raise ValueError(f"a checkpoint with {shapes} does not fit a row of state {tuple(fresh.state.shape)}")
    for line in fresh.plan.lines[: saved.line]:
        _draw(fresh, line)
    fresh.state, fresh.line = saved.state.to(fresh.state.device, copy=True), saved.line
    return fresh


def start(
    plan: Plan,
    conditions: Mapping[str, Condition],
    generator: torch.Generator,
    shape: Sequence[int],
    picture: Tensor | None = None,
    mask: Tensor | None = None,
) -> Row:
    """A row at line 0: x = init_alpha z + init_sigma noise, the noise being the generator's next draw.

    Args:
        conditions: on the device where the row is to live, as are ``picture`` and ``mask``.
        generator: on the CPU; what an encoder of the input picture draws has been drawn already.
        shape: of the latent, (C, h, w) or (T, C, h, w).
        picture: z, in the network's scale, when the plan begins from a picture.
        mask: [1, h, w], 1 where the row may paint; the rest of ``picture`` is kept.

    Raises:
        ValueError: the plan or the mask needs a picture and there is none, or the plan guides another number of frames.
    """
    frames = shape[0] if len(shape) == 4 else 1
    guided = {len(lane.weight) for line in plan.lines for lane in line.lanes if isinstance(lane.weight, tuple)}
    if guided - {frames}:
        raise ValueError(f"guidance frames={max(guided)}, expected the {frames} of the row")
    if picture is None and (plan.init_alpha or mask is not None):
        raise ValueError("this row begins from a picture, and none is given")
    device = next((condition.context.device for condition in conditions.values()), None)
    noise = torch.randn((1, *shape), generator=generator)[0].to(device)
    state = torch.zeros(plan.history + 1, *shape, device=device)
    state[0] = plan.init_sigma * noise
    keep = None
    if picture is not None:
        state[0] += plan.init_alpha * picture
        keep = None if mask is None else Keep(mask, picture, noise)
    return Row(plan, conditions, state, generator, keep)


def network_of(line: Line, lane: Lane) -> str:
    """The name of what evaluates a lane: the line's network, or a variant of it."""
    return f"{line.network}/{lane.variant}" if lane.variant else line.network


@torch.inference_mode()
def evaluate_part(denoisers: Mapping[str, Denoiser], row: Row, lanes: int, padded_lanes: int = 0) -> None:
    """Run so many of the lanes that a row's next line has left, for all take too long or too much memory together;
    :func:`advance` runs the rest. If it raises, the row has not changed.

    Raises:
        ValueError: as :func:`advance`, or all lanes or none are asked for.
    """
    if not 1 <= lanes < row.lanes_left:
        raise ValueError(f"lanes={lanes}, expected at least 1 and fewer than the {row.lanes_left} that are left")
    line, until = row.plan.lines[row.line], len(row.evaluated) + lanes
    row.evaluated = tuple(_evaluate(denoisers, [row], [line], padded_lanes, until)[0][:until])


@torch.inference_mode()
def advance(denoisers: Mapping[str, Denoiser], rows: Sequence[Row], padded_lanes: int = 0) -> None:
    """Take every row one line further; the lanes of one network are one evaluation. If it raises, no row has changed.

    Args:
        denoisers: by the names of ``network_of``.
        rows: unfinished rows of one latent shape and context length.
        padded_lanes: run at least this many lanes, the missing ones being copies: with a back end whose bytes depend
            on the batch size, a constant size makes a row's bytes its own.

    Raises:
        ValueError: a lane needs a network that is not in ``denoisers``.
    """
    lines = [row.plan.lines[row.line] for row in rows]
    outputs = _evaluate(denoisers, rows, lines, padded_lanes, None)
    drawn = [row.generator.get_state() if line.draw else None for row, line in zip(rows, lines, strict=True)]
    try:
        noise = torch.stack([_draw(row, line) for row, line in zip(rows, lines, strict=True)])
        guided, weights = _rescaled(lines, *_padded_outputs(outputs, lines))
        states, history = _padded_states(rows)
        keep = batched([row.keep for row in rows], [_level_after(row) for row in rows], states[:, 0])
        stepped = solver_step(states, guided, weights, *_coefficients(lines, history, states), noise, *keep)
    except BaseException:
        for row, generator_state in zip(rows, drawn, strict=True):
            if generator_state is not None:
                row.generator.set_state(generator_state)
        raise
    for row, state in zip(rows, stepped, strict=True):
        row.state = state[: row.plan.history + 1].clone()
        row.line, row.evaluated = row.line + 1, ()


def _evaluate(
    denoisers: Mapping[str, Denoiser], rows: Sequence[Row], lines: Sequence[Line], padded_lanes: int, until: int | None
) -> list[list[Tensor]]:
    """Network outputs of each row's lanes up to ``until`` (None: all), each [(T,) C, h, w]."""
    outputs: list[list[Tensor]] = [[*row.evaluated, *([row.state[0]] * row.lanes_left)] for row in rows]
    groups: dict[str, list[tuple[int, int]]] = {}
    for i, (row, line) in enumerate(zip(rows, lines, strict=True)):
        for k in range(len(row.evaluated), len(line.lanes) if until is None else until):
            groups.setdefault(network_of(line, line.lanes[k]), []).append((i, k))
    scaled = [row.state[0] * line.c_in for row, line in zip(rows, lines, strict=True)]
    for name, places in groups.items():
        if name not in denoisers:
            raise ValueError(f"a plan needs the network {name!r}, which is not there; known: {', '.join(denoisers)}")
        spread = places + places[:1] * (padded_lanes - len(places))
        conditions = [rows[i].conditions[lines[i].lanes[k].condition] for i, k in spread]
        inputs = [_joined(scaled[i], condition.concat) for (i, _), condition in zip(spread, conditions, strict=True)]
        times = torch.tensor([lines[i].c_noise for i, _ in spread], dtype=scaled[0].dtype)
        result = denoisers[name](
            torch.stack(inputs),
            times.to(scaled[0].device),
            torch.stack([condition.context for condition in conditions]),
            torch.stack([condition.vector for condition in conditions]),
        )
        for (i, k), output in zip(places, result[: len(places)], strict=True):
            # In the dtype of the state: a row's sum of lanes must not depend on the dtype of its neighbours' networks.
            outputs[i][k] = output.to(scaled[i].dtype)
    return outputs


def _joined(x: Tensor, concat: Tensor | None) -> Tensor:
    """x with the condition's channels behind its own."""
    return x if concat is None else torch.cat([x, concat.to(x.dtype)], dim=-3)


def _padded_states(rows: Sequence[Row]) -> tuple[Tensor, int]:
    """States as one tensor [B, K + 1, ...], shorter histories padded with zeros; and K."""
    history = max(row.plan.history for row in rows)
    states = rows[0].state.new_zeros(len(rows), history + 1, *rows[0].state.shape[1:])
    for i, row in enumerate(rows):
        states[i, : row.plan.history + 1] = row.state
    return states, history


def _padded_outputs(outputs: Sequence[Sequence[Tensor]], lines: Sequence[Line]) -> tuple[Tensor, Tensor]:
    """Outputs [B, L, ...] and lane weights [B, L], or [B, L, T] where any differs by frame; zeros for missing lanes."""
    lanes, first = max(len(line.lanes) for line in lines), outputs[0][0]
    per_frame = any(isinstance(lane.weight, tuple) for line in lines for lane in line.lanes)
    padded = first.new_zeros(len(lines), lanes, *first.shape)
    weights = torch.zeros(len(lines), lanes, *first.shape[:1] if per_frame else (), dtype=torch.float64)
    for i, (row, line) in enumerate(zip(outputs, lines, strict=True)):
        for k, (output, lane) in enumerate(zip(row, line.lanes, strict=True)):
            padded[i, k] = output
            weights[i, k] = torch.tensor(lane.weight, dtype=torch.float64)
    return padded, weights.to(first.device)


def _rescaled(lines: Sequence[Line], outputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The same, but rows whose line asks for guidance rescale have their guided output as the only lane.

    The other rows go as they are: lanes mixed here and lanes mixed by the solver step's kernel differ in the last bit.
    """
    asked = [i for i, line in enumerate(lines) if line.rescale]
    if asked:
        guided = mix_lanes(outputs[asked], weights[asked])
        positive = torch.stack([outputs[i, _positive_lane(lines[i])] for i in asked])
        phi = torch.tensor([lines[i].rescale for i in asked], dtype=outputs.dtype).to(outputs.device)
        outputs[asked], weights[asked] = 0.0, 0.0
        outputs[asked, 0], weights[asked, 0] = guidance_rescale(guided, positive, phi), 1.0
    return outputs, weights


def _positive_lane(line: Line) -> int:
    """Place of the whole network's positive lane; a refiner's is named ``refiner/positive``."""
    names = [lane.condition.rpartition("/")[2] + lane.variant for lane in line.lanes]
    return names.index("positive")


def _coefficients(lines: Sequence[Line], history: int, states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """c_skip [B], c_out [B], A [B, K+1, K+1], b [B, K+1] and s [B], shorter histories padded with zeros, in the dtype
    of the states and beside them."""
    dtype = states.dtype
    a = torch.zeros(len(lines), history + 1, history + 1, dtype=dtype)
    b = torch.zeros(len(lines), history + 1, dtype=dtype)
    for i, line in enumerate(lines):
        k = len(line.b)
        a[i, :k, :k], b[i, :k] = torch.tensor(line.a, dtype=dtype), torch.tensor(line.b, dtype=dtype)
    numbers = torch.tensor([(line.c_skip, line.c_out, line.s) for line in lines], dtype=dtype)
    c_skip, c_out, s = numbers.to(states.device).unbind(1)
    return c_skip, c_out, a.to(states.device), b.to(states.device), s


def _level_after(row: Row) -> tuple[float, float]:
    """(alpha, sigma) after the next line. Some solvers end a little above (1, 0); what stays of a picture does not."""
    line = row.plan.lines[row.line]
    return (line.alpha, line.sigma) if row.line + 1 < len(row.plan.lines) else (1.0, 0.0)


def _draw(row: Row, line: Line) -> Tensor:
    """The line's noise, shaped as x and beside it, from the row's generator; zeros when the line draws none."""
    shape = row.state.shape[1:]
    if not line.draw:
        return torch.zeros(shape, device=row.state.device)
    return torch.randn((1, *shape), generator=row.generator)[0].to(row.state.device)
