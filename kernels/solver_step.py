"""One solver step for a batch of rows: guidance, prediction and update in one formula.

    F = sum_k w_k F_k        D = c_skip x + c_out F        y' = A y + b D + s noise

y = (x, h1 .. hK) is a row's state and the noise goes to x only. F is classifier-free guidance (Ho and Salimans 2022,
equation 6) over L lanes, D the denoised estimate (Karras et al. 2022, equation 7), and the update holds every linear
solver: Euler, DDIM (Song et al. 2021), DPM-Solver++ (Lu et al. 2022). Coefficients differ from row to row, so rows of
different solvers and step counts share one call; rows with fewer lanes or less history are padded with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
) -> Tensor:
    """The formula, row by row in the dtype of the state. Shapes as in :func:`solver_step`."""
    result = torch.empty_like(state)
    for row, y in enumerate(state):
        guided = sum(float(w) * f.to(y.dtype) for w, f in zip(weights[row], outputs[row], strict=True))
        denoised = float(c_skip[row]) * y[0] + float(c_out[row]) * guided
        for i in range(len(y)):
            mixed = sum(float(a[row, i, j]) * y[j] for j in range(len(y)))
            result[row, i] = mixed + float(b[row, i]) * denoised
        result[row, 0] += float(s[row]) * noise[row].to(y.dtype)
    return result


def solver_step(
    state: Tensor,  # [B, K+1, C, *spatial], fp32 or fp64
    outputs: Tensor,  # [B, L, C, *spatial]
    weights: Tensor,  # [B, L]
    c_skip: Tensor,  # [B]
    c_out: Tensor,  # [B]
    a: Tensor,  # [B, K+1, K+1]
    b: Tensor,  # [B, K+1]
    s: Tensor,  # [B]
    noise: Tensor,  # [B, C, *spatial]
) -> Tensor:
    """The state after the step, [B, K+1, C, *spatial], computed in the dtype of ``state``.

    A row's result has the same bits in every batch: only products and sums of elements, in a fixed order. A matmul or
    einsum over L or K would be shorter, but picks its order of summation by the batch size.
    """
    rows, slots = state.shape[:2]
    lanes = outputs.shape[1]
    assert state.dtype in (torch.float32, torch.float64), state.dtype
    assert outputs.shape == (rows, lanes, *state.shape[2:]), (outputs.shape, state.shape)
    assert noise.shape == (rows, *state.shape[2:]), (noise.shape, state.shape)
    assert weights.shape == (rows, lanes) and c_skip.shape == c_out.shape == s.shape == (rows,)
    assert a.shape == (rows, slots, slots) and b.shape == (rows, slots)

    def per_row(coefficient: Tensor) -> Tensor:
        """[B, ...] -> [B, ..., 1, ...], to broadcast over channels and space."""
        ones = (1,) * (state.dim() - 2)
        return coefficient.to(state.dtype).reshape(*coefficient.shape, *ones)

    outputs, noise = outputs.to(state.dtype), noise.to(state.dtype)
    weights, a, b = per_row(weights), per_row(a), per_row(b)
    guided = weights[:, 0] * outputs[:, 0]
    for k in range(1, lanes):
        guided = guided + weights[:, k] * outputs[:, k]
    denoised = per_row(c_skip) * state[:, 0] + per_row(c_out) * guided
    result = a[:, :, 0] * state[:, :1]  # [B, K+1, C, *spatial]: slot j of the old state into every slot of the new
    for j in range(1, slots):
        result = result + a[:, :, j] * state[:, j : j + 1]
    result = result + b * denoised[:, None]
    result[:, 0] += per_row(s) * noise
    return result
