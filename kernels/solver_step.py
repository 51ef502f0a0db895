"""One solver step for a batch of rows: guidance, prediction and update in one formula.

    F = sum_k w_k F_k        D = c_skip x + c_out F        y' = A y + b D + s noise

y = (x, h1 .. hK) is a row's state and the noise goes to x only. F is classifier-free guidance (Ho and Salimans 2022,
equation 6) over L lanes, whose weights may differ from frame to frame, D the denoised estimate (Karras et al. 2022,
equation 7), and the update holds every linear solver: Euler, DDIM (Song et al. 2021), DPM-Solver++ (Lu et al. 2022).
Coefficients differ from row to row, so rows of different solvers and step counts share one call; rows with fewer lanes
or less history are padded with zeros.

An inpainting row keeps part of a picture z (Lugmayr et al. 2022, equation 8, with one eps for all steps of a row):

    x'' = m x' + (1 - m) (alpha z + sigma eps)        where the mask m is not 1, and x' itself where it is

Guidance rescale is a statistic of the row and not linear, so ``guidance_rescale.py`` comes before the step, which then
has its result as the only lane, of weight 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.backend import may_run, takes_kernel
from kernels.custom_op import custom_op, like_first
from kernels.guidance_rescale import mix_lanes
from kernels.language import jit, tl
from kernels.launch import Launch, Plan, Tile, cdiv, planned_for
from kernels.tiles import TileTable

TILES = TileTable(
    "solver_step",
    candidates={"all": (Tile({"BLOCK": 512}, 4), Tile({"BLOCK": 1024}, 4), Tile({"BLOCK": 256}, 4))},
    interpreted={"all": Tile({"BLOCK": 64}, 4)},
)


def solver_step_reference(
    state: Tensor,
    outputs: Tensor,
    weights: Tensor,
    c_skip: Tensor,
    c_out: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor,
    noise: Tensor,
    mask: Tensor | None = None,
    kept: Tensor | None = None,
    level: Tensor | None = None,
) -> Tensor:
    """The formula, row by row in the dtype of the state. Shapes as in :func:`solver_step`."""
    result = torch.empty_like(state)
    for row, y in enumerate(state):
        guided = torch.zeros_like(y[0])
        for lane, output in zip(weights[row], outputs[row], strict=True):
            # One weight for the whole output, or one for each of its frames.
            for place in range(lane.numel()):
                part = slice(None) if lane.dim() == 0 else place
                guided[part] += float(lane.reshape(-1)[place]) * output[part].to(y.dtype)
        denoised = float(c_skip[row]) * y[0] + float(c_out[row]) * guided
        for i in range(len(y)):
            mixed = sum(float(a[row, i, j]) * y[j] for j in range(len(y)))
            result[row, i] = mixed + float(b[row, i]) * denoised
        result[row, 0] += float(s[row]) * noise[row].to(y.dtype)
        if mask is not None and kept is not None and level is not None:
            alpha, sigma = level[row].tolist()
            stays = alpha * kept[row, 0].to(y.dtype) + sigma * kept[row, 1].to(y.dtype)
            result[row, 0] = mask[row] * result[row, 0] + (1.0 - mask[row]) * stays
    return result


@jit
def solver_step_kernel(
    state_ptr: tl.tensor,  # [B, S, N] fp32, contiguous, as everything here
    outputs_ptr: tl.tensor,  # [B, L, N]
    weights_ptr: tl.tensor,  # [B, L, frames] fp32
    c_skip_ptr: tl.tensor,  # [B] fp32
    c_out_ptr: tl.tensor,  # [B] fp32
    a_ptr: tl.tensor,  # [B, S, S] fp32
    b_ptr: tl.tensor,  # [B, S] fp32
    s_ptr: tl.tensor,  # [B] fp32
    noise_ptr: tl.tensor,  # [B, N]
    mask_ptr: tl.tensor,  # [B, P] fp32
    kept_ptr: tl.tensor,  # [B, 2, N]
    level_ptr: tl.tensor,  # [B, 2] fp32
    result_ptr: tl.tensor,  # [B, S, N] fp32
    elements: tl.tensor,  # N
    pixels: tl.tensor,  # P, of which a frame's channel has one each
    frames: tl.tensor,  # N / frames elements have one weight
    SLOTS: tl.constexpr,  # S
    LANES: tl.constexpr,  # L
    BLOCK: tl.constexpr,
) -> None:
    """BLOCK elements of one row: every product and sum of an element in the order of the torch function."""
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    frame = at // (elements // frames)
    guided = tl.zeros([BLOCK], tl.float32)
    for lane in tl.static_range(LANES):
        output = tl.load(outputs_ptr + (row * LANES + lane) * elements + at, mask=inside, other=0.0).to(tl.float32)
        guided += tl.load(weights_ptr + (row * LANES + lane) * frames + frame, mask=inside, other=0.0) * output
    old = state_ptr + row * SLOTS * elements + at
    denoised = tl.load(c_skip_ptr + row) * tl.load(old, mask=inside, other=0.0) + tl.load(c_out_ptr + row) * guided
    for i in tl.static_range(SLOTS):
        new = tl.zeros([BLOCK], tl.float32)
        for j in tl.static_range(SLOTS):
            weight = tl.load(a_ptr + (row * SLOTS + i) * SLOTS + j)
            new += weight * tl.load(old + j * elements, mask=inside, other=0.0)
        new += tl.load(b_ptr + row * SLOTS + i) * denoised
        if i == 0:
            noise = tl.load(noise_ptr + row * elements + at, mask=inside, other=0.0).to(tl.float32)
            new += tl.load(s_ptr + row) * noise
            if mask_ptr is not None:
                mask = tl.load(mask_ptr + row * pixels + at % pixels, mask=inside, other=1.0)
                picture = kept_ptr + row * 2 * elements + at
                stays = tl.load(level_ptr + row * 2) * tl.load(picture, mask=inside, other=0.0).to(tl.float32)
                eps = tl.load(picture + elements, mask=inside, other=0.0).to(tl.float32)
                stays += tl.load(level_ptr + row * 2 + 1) * eps
                # A row that keeps nothing has the bits of a batch without masks: 1 x + 0 would make a +0 of a -0.
                new = tl.where(mask == 1.0, new, mask * new + (1.0 - mask) * stays)
        tl.store(result_ptr + (row * SLOTS + i) * elements + at, new, mask=inside)


def plan_solver_step(
    state: Tensor,
    outputs: Tensor,
    weights: Tensor,
    c_skip: Tensor,
    c_out: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor,
    noise: Tensor,
    mask: Tensor | None,
    kept: Tensor | None,
    level: Tensor | None,
    architecture: int,
) -> Plan:
    """The launch. Shapes as in :func:`solver_step`; copies what is not contiguous, and numbers that are not fp32."""
    tile = TILES.tile("all", architecture)
    rows, slots = state.shape[:2]
    result = state.new_empty(state.shape)
    elements = noise[0].numel()
    weights = weights.reshape(*outputs.shape[:2], -1)
    pixels = 1 if mask is None else mask[0].numel()
    numbers = {
        "weights": weights, "c_skip": c_skip, "c_out": c_out, "a": a, "b": b, "s": s, "mask": mask, "level": level,
    }  # fmt: skip
    tensors = {"state": state, "outputs": outputs, "noise": noise, "kept": kept}
    arguments = {
        **{f"{name}_ptr": None if given is None else given.contiguous() for name, given in tensors.items()},
        **{f"{name}_ptr": None if given is None else given.float().contiguous() for name, given in numbers.items()},
        "result_ptr": result, "elements": elements, "pixels": pixels, "frames": weights.shape[2], "SLOTS": slots,
        "LANES": outputs.shape[1],
    }  # fmt: skip
    return Plan(result, (Launch(solver_step_kernel, (cdiv(elements, tile.sizes["BLOCK"]), rows), arguments, tile),))


def launch_solver_step(
    state: Tensor,
    outputs: Tensor,
    weights: Tensor,
    c_skip: Tensor,
    c_out: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor,
    noise: Tensor,
    mask: Tensor | None = None,
    kept: Tensor | None = None,
    level: Tensor | None = None,
) -> Tensor:
    """:func:`solver_step` by the kernel."""
    inputs = (state, outputs, weights, c_skip, c_out, a, b, s, noise, mask, kept, level)
    return plan_solver_step(*inputs, planned_for(state)).run()


def torch_solver_step(
    state: Tensor,  # [B, K+1, C, *spatial] or [B, K+1, T, C, *spatial], fp32 or fp64
    outputs: Tensor,  # [B, L, C, *spatial] or [B, L, T, C, *spatial]
    weights: Tensor,  # [B, L] or [B, L, T]
    c_skip: Tensor,  # [B]
    c_out: Tensor,  # [B]
    a: Tensor,  # [B, K+1, K+1]
    b: Tensor,  # [B, K+1]
    s: Tensor,  # [B]
    noise: Tensor,  # as one slot of the state
    mask: Tensor | None = None,  # [B, 1, *spatial] or [B, 1, 1, *spatial]
    kept: Tensor | None = None,  # [B, 2, C, *spatial] or [B, 2, T, C, *spatial]
    level: Tensor | None = None,  # [B, 2]
) -> Tensor:
    """:func:`solver_step` in torch's operators.

    Only products and sums of elements, in a fixed order: a matmul or einsum over L or K would be shorter, but picks its
    order of summation by the batch size.
    """
    slots = state.shape[1]

    def per_row(coefficient: Tensor) -> Tensor:
        """[B, ...] -> [B, ..., 1, ...], to broadcast over frames, channels and space."""
        ones = (1,) * (state.dim() - 2)
        return coefficient.to(state.dtype).reshape(*coefficient.shape, *ones)

    guided = mix_lanes(outputs.to(state.dtype), weights)
    a, b = per_row(a), per_row(b)
    denoised = per_row(c_skip) * state[:, 0] + per_row(c_out) * guided
    # Slot j of the old state into every slot of the new, [B, K+1, ...]. A sum that begins at +0 is never -0, so slots
    # and lanes of padding, which add a zero of either sign, change no bit.
    result = 0.0 + a[:, :, 0] * state[:, :1]
    for j in range(1, slots):
        result = result + a[:, :, j] * state[:, j : j + 1]
    result = result + b * denoised[:, None]
    result[:, 0] += per_row(s) * noise.to(state.dtype)
    if mask is not None and kept is not None and level is not None:
        x, mask = result[:, 0], mask.to(state.dtype)
        alpha, sigma = per_row(level).unbind(1)
        stays = alpha * kept[:, 0].to(state.dtype) + sigma * kept[:, 1].to(state.dtype)
        result[:, 0] = torch.where(mask == 1.0, x, mask * x + (1.0 - mask) * stays)
    return result


_solver_step = custom_op("solver_step", launch_solver_step, torch_solver_step, like_first)


def solver_step(
    state: Tensor,  # [B, K+1, C, *spatial] or [B, K+1, T, C, *spatial], fp32 or fp64
    outputs: Tensor,  # [B, L, C, *spatial] or [B, L, T, C, *spatial]
    weights: Tensor,  # [B, L] or [B, L, T]
    c_skip: Tensor,  # [B]
    c_out: Tensor,  # [B]
    a: Tensor,  # [B, K+1, K+1]
    b: Tensor,  # [B, K+1]
    s: Tensor,  # [B]
    noise: Tensor,  # as one slot of the state
    mask: Tensor | None = None,  # [B, 1, *spatial] or [B, 1, 1, *spatial]
    kept: Tensor | None = None,  # [B, 2, C, *spatial] or [B, 2, T, C, *spatial]
    level: Tensor | None = None,  # [B, 2]
) -> Tensor:
    """The state after the step, computed in the dtype of ``state`` and of its shape.

    A row's result has the same bits in every batch. Equal weights for all frames give the bits of one weight.

    The last three are of inpainting rows, and left out of a batch without any: where a row may paint, what it keeps (z
    and eps), and alpha and sigma after the step. A row that keeps nothing has a mask of ones there.
    """
    rows, slots = state.shape[:2]
    assert state.dtype in (torch.float32, torch.float64), state.dtype
    assert outputs.shape[2:] == noise.shape[1:] and noise.shape == (rows, *state.shape[2:]), (noise.shape, state.shape)
    assert c_skip.shape == c_out.shape == s.shape == (rows,)
    assert a.shape == (rows, slots, slots) and b.shape == (rows, slots)
    inputs = (state, outputs, weights, c_skip, c_out, a, b, s, noise, mask, kept, level)
    if mask is not None and kept is not None and level is not None:
        assert kept.shape == (rows, 2, *noise.shape[1:]) and level.shape == (rows, 2), (kept.shape, level.shape)
        masks = [(rows, *(1,) * shared, *noise.shape[1 + shared :]) for shared in (1, 2)]
        assert mask.shape in masks, (mask.shape, noise.shape)
    else:
        assert mask is kept is level is None
    if may_run(state) and takes_kernel(TILES, "all", inputs):
        return _solver_step(*inputs)
    return torch_solver_step(*inputs)
