"""Calls of every kernel on ragged shapes and strided inputs, for Triton's interpreter and for a GPU alike.

A case makes its inputs in float64 and says which launcher and which reference take them. What a kernel is given is
rounded to the dtype under test first, and the reference sees the rounded values in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.adaln import gated_residual_reference, launch_gated_residual, launch_modulate, modulate_reference
from kernels.attention import attention_reference, launch_attention
from kernels.blend import blend_reference, launch_blend
from kernels.geglu import geglu_reference, launch_geglu
from kernels.group_norm_silu import group_norm_silu_reference, launch_group_norm
from kernels.rms_norm import launch_rms_norm, rms_norm_reference
from kernels.solver_step import launch_solver_step, solver_step_reference
from kernels.temporal_attention import launch_temporal_attention, temporal_attention_reference
from kernels.temporal_conv import launch_temporal_conv, temporal_conv_reference
from kernels.temporal_resnet import NormedConv, launch_temporal_resnet, temporal_resnet_reference

TOLERANCES = {torch.float32: 4e-7, torch.float16: 2.8e-4, torch.bfloat16: 2.2e-3}
"""Norm of the error relative to the norm of the output. One rounding to nearest is 2.1e-4 in fp16 and 1.7e-3 in bf16;
attention rounds its weights too, and a residual block what lies between its convolutions."""
PEAK = 2.4
"""So many times that may the largest error be, relative to the largest output."""
GPU_SUMS = 2e-6
"""Norm of the error of fp32 on a GPU, which sums in another order and has an exp2 of two units in the last place."""
Inputs = list[Any]


@dataclass(frozen=True)
class Case:
    """One call."""

    name: str
    inputs: Callable[[torch.Generator], Inputs]
    """Tensors float64 on the CPU, and what else the call takes."""
    launch: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    full_precision: frozenset[int] = frozenset()
    """Places of inputs that stay fp32 whatever the dtype under test is."""
    fp32: float = TOLERANCES[torch.float32]
    """Tolerance in fp32, where the inputs lose digits of it."""

    def check(self, dtype: torch.dtype, device: str) -> None:
        """Run both and compare.

        Raises:
            AssertionError: they are further apart than rounding explains, or the result is of another dtype.
        """
        given = self.inputs(torch.Generator().manual_seed(0))
        kinds = [torch.float32 if i in self.full_precision else dtype for i in range(len(given))]
        rounded = [_cast(value, kind, device) for value, kind in zip(given, kinds, strict=True)]
        result = self.launch(*rounded)
        expected = self.reference(*(_cast(value, torch.float64, "cpu") for value in rounded))
        assert result.dtype == rounded[0].dtype and result.shape == expected.shape
        limit = max(TOLERANCES[result.dtype], self.fp32, GPU_SUMS if device == "cuda" else 0.0)
        error = result.cpu().double() - expected
        norm, peak = float(error.norm() / expected.norm()), float(error.abs().max() / expected.abs().max())
        assert norm <= limit and peak <= PEAK * limit, f"norm {norm:.2e}, largest {peak:.2e}"


def _cast(value: Any, dtype: torch.dtype, device: str) -> Any:
    """To a dtype and device, strides and all."""
    if isinstance(value, list):
        return [_cast(one, dtype, device) for one in value]
    if not isinstance(value, Tensor):
        return value
    moved = torch.empty_strided(value.shape, value.stride(), dtype=dtype, device=device)
    return moved.copy_(value)


def randn(generator: torch.Generator, *shape: int, mean: float = 0.0) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64) + mean


def attention_case(
    batch: int, queries: int, keys: int, heads: int, head_dim: int, causal: bool = False, packed: bool = False
) -> Case:
    """``packed``: queries, keys and values are slices of one projection."""

    def inputs(generator: torch.Generator) -> Inputs:
        width = heads * head_dim
        if packed:
            q, k, v = randn(generator, batch, queries, 3 * width).chunk(3, -1)
        else:
            q, k, v = (randn(generator, batch, length, width) for length in (queries, keys, keys))
        return [q, k, v, heads, causal]

    name = f"attention {batch}x{queries}x{keys} {heads}x{head_dim}{' causal' * causal}{' packed' * packed}"
    return Case(name, inputs, launch_attention, attention_reference)


def temporal_attention_case(
    batch: int, frames: int, pixels: int, heads: int, head_dim: int, strided: bool = False
) -> Case:
    """``strided``: queries are a slice of a wider tensor, and in the values frames lie behind pixels."""

    def inputs(generator: torch.Generator) -> Inputs:
        shape = (batch, frames, pixels, heads * head_dim)
        q, k, v = (randn(generator, *shape) for _ in range(3))
        if strided:
            q = randn(generator, *shape[:3], 2 * shape[3])[..., shape[3] :]
            v = randn(generator, batch, pixels, frames, shape[3]).transpose(1, 2)
        return [q, k, v, heads]

    name = f"temporal attention {batch}x{frames}x{pixels} {heads}x{head_dim}{' strided' * strided}"
    return Case(name, inputs, launch_temporal_attention, temporal_attention_reference)


def conv_case(batch: int, frames: int, pixels: int, channels: int, outputs: int, bias: bool = True) -> Case:
    def inputs(generator: torch.Generator) -> Inputs:
        weight = randn(generator, outputs, channels, 3, 1, 1)
        offset = randn(generator, outputs) if bias else None
        return [randn(generator, batch, frames * pixels, channels), weight, offset, frames]

    def reference(x: Tensor, weight: Tensor, offset: Tensor | None, frames: int) -> Tensor:
        return _rows(temporal_conv_reference(_clip(x, frames), weight, offset))

    return Case(
        f"temporal conv {batch}x{frames}x{pixels} {channels}->{outputs}", inputs, launch_temporal_conv, reference
    )


def resnet_case(batch: int, frames: int, pixels: int, channels: int, groups: int, added: bool = True) -> Case:
    def inputs(generator: torch.Generator) -> Inputs:
        weights = []
        for _ in range(2):
            weights += [randn(generator, channels, mean=1.0), randn(generator, channels)]
            weights += [randn(generator, channels, channels, 3, 1, 1) / channels**0.5, randn(generator, channels)]
        # Frames of different brightness, so that statistics of single frames would show.
        x = randn(generator, batch, frames, pixels, channels) + torch.arange(frames)[:, None, None]
        time = randn(generator, batch, frames, channels) if added else None
        return [x.flatten(1, 2), weights, time, torch.rand(batch, frames, generator=generator).double(), groups, 1e-5]

    def reference(
        x: Tensor, weights: list[Tensor], time: Tensor | None, gain: Tensor, groups: int, eps: float
    ) -> Tensor:
        first, second = NormedConv(*weights[:4]), NormedConv(*weights[4:])
        return _rows(temporal_resnet_reference(_clip(x, gain.shape[1]), first, second, time, gain, groups, eps))

    name = f"temporal resnet {batch}x{frames}x{pixels} {channels}/{groups}"
    return Case(name, inputs, launch_temporal_resnet, reference, frozenset({3}))


def group_norm_case(batch: int, rows: int, channels: int, groups: int, silu: bool = True, mean: float = 3.0) -> Case:
    def inputs(generator: torch.Generator) -> Inputs:
        x = 2.0 * randn(generator, batch, rows, channels) + mean
        return [x, randn(generator, channels), randn(generator, channels), groups, 1e-5, silu]

    def reference(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        last = x.transpose(1, 2)
        if silu:
            return group_norm_silu_reference(last, weight, bias, groups, eps).transpose(1, 2)
        return torch.nn.functional.group_norm(last, groups, weight, bias, eps).transpose(1, 2)

    name = f"group norm {batch}x{rows}x{channels}/{groups} mean {mean:g}{' silu' * silu}"
    # A mean of 50 is known to 2e-6 in fp32, and the deviation is 2: the normed values are known to 1e-6.
    return Case(name, inputs, launch_group_norm, reference, fp32=1e-6 if mean > 10.0 else Case.fp32)


def geglu_case(rows: int, channels: int, gap: int = 0) -> Case:
    """``gap``: elements between the rows."""

    def inputs(generator: torch.Generator) -> Inputs:
        return [randn(generator, rows, 2 * channels + gap)[:, : 2 * channels]]

    return Case(f"geglu {rows}x{channels} gap {gap}", inputs, launch_geglu, geglu_reference)


def rms_norm_case(rows: int, groups: int, length: int, gap: int = 0) -> Case:
    def inputs(generator: torch.Generator) -> Inputs:
        x = randn(generator, rows, groups * length + gap)[:, : groups * length]
        return [x, randn(generator, length), 1e-6]

    return Case(f"rms norm {rows}x{groups}x{length} gap {gap}", inputs, launch_rms_norm, rms_norm_reference)


def adaln_case(op: str, batch: int, tokens: int, channels: int) -> Case:
    """Shift, scale and gate are slices of one projection, as the networks make them."""

    def inputs(generator: torch.Generator) -> Inputs:
        first, second, gate = randn(generator, batch, 1, 3 * channels).chunk(3, -1)
        x = 2.0 * randn(generator, batch, tokens, channels, mean=1.0)
        if op == "modulate":
            return [x, first, second, 1e-6]
        return [x, gate, randn(generator, batch, tokens + 2, channels)[:, 2:]]

    launch, reference = {
        "modulate": (launch_modulate, modulate_reference),
        "gated residual": (launch_gated_residual, gated_residual_reference),
    }[op]
    return Case(f"{op} {batch}x{tokens}x{channels}", inputs, launch, reference)


def blend_case(shape: tuple[int, ...], alpha: tuple[int, ...]) -> Case:
    def inputs(generator: torch.Generator) -> Inputs:
        return [randn(generator, *shape), randn(generator, *shape), torch.rand(alpha, generator=generator).double()]

    return Case(f"blend {shape} by {alpha}", inputs, launch_blend, blend_reference)


def solver_case(
    rows: int, slots: int, lanes: int, shape: tuple[int, ...], per_frame: bool = False, keeps: tuple[int, ...] = ()
) -> Case:
    """The state is fp32 whatever the networks' outputs are. The rows ``keeps`` keep a part of a picture."""

    def inputs(generator: torch.Generator) -> Inputs:
        weights = randn(generator, rows, lanes, *shape[:1] if per_frame else ())
        numbers = [randn(generator, rows), randn(generator, rows), randn(generator, rows, slots, slots)]
        last = [randn(generator, rows, slots), randn(generator, rows), randn(generator, rows, *shape)]
        state, outputs = randn(generator, rows, slots, *shape), randn(generator, rows, lanes, *shape)
        if keeps:
            mask = torch.ones(rows, *(1,) * (len(shape) - 2), *shape[-2:], dtype=torch.float64)
            kept, level = torch.zeros(rows, 2, *shape).double(), torch.zeros(rows, 2).double()
            for row in keeps:
                mask[row] = randn(generator, *shape[-2:], mean=0.5).clamp(0.0, 1.0)
                kept[row], level[row] = randn(generator, 2, *shape), randn(generator, 2)
            last += [mask, kept, level]
        return [state, outputs, weights, *numbers, *last]

    name = f"solver step {rows}x{slots}x{lanes} {shape}{' per frame' * per_frame}{f' keeps {keeps}' if keeps else ''}"
    full_precision = frozenset({0, 2, 3, 4, 5, 6, 7, 8, 9, 11})
    return Case(name, inputs, launch_solver_step, solver_step_reference, full_precision)


def _clip(rows: Tensor, frames: int) -> Tensor:
    """[B, T * P, C] -> [B, T, C, P, 1]."""
    return rows.unflatten(1, (frames, -1)).transpose(2, 3)[..., None]


def _rows(clip: Tensor) -> Tensor:
    return clip.flatten(3).transpose(2, 3).flatten(1, 2)


CASES = (
    attention_case(1, 70, 45, 2, 64),
    attention_case(2, 33, 77, 1, 40),
    attention_case(1, 20, 40, 2, 72),
    attention_case(1, 40, 33, 1, 80),
    attention_case(1, 35, 20, 1, 128),
    attention_case(1, 33, 40, 1, 160),
    attention_case(1, 64, 64, 2, 8),
    attention_case(2, 50, 50, 2, 64, packed=True),
    attention_case(1, 35, 35, 2, 40, packed=True),
    attention_case(1, 20, 20, 2, 72, packed=True),
    attention_case(1, 33, 33, 2, 160, packed=True),
    attention_case(1, 70, 70, 1, 64, causal=True),
    temporal_attention_case(2, 14, 7, 2, 64),
    temporal_attention_case(1, 25, 3, 2, 40, strided=True),
    temporal_attention_case(1, 2, 33, 1, 80),
    temporal_attention_case(1, 7, 5, 2, 72, strided=True),
    temporal_attention_case(1, 25, 3, 1, 128),
    temporal_attention_case(1, 32, 2, 1, 160),
    temporal_attention_case(2, 5, 9, 1, 8, strided=True),
    conv_case(2, 5, 32, 24, 40),
    conv_case(1, 3, 7, 8, 72, bias=False),
    conv_case(1, 1, 33, 16, 32),
    resnet_case(2, 4, 9, 24, 4),
    resnet_case(1, 3, 32, 40, 8, added=False),
    group_norm_case(2, 37, 40, 4),
    group_norm_case(1, 130, 64, 32, silu=False),
    group_norm_case(3, 5, 30, 3, mean=50.0),
    geglu_case(5, 72),
    geglu_case(33, 20, gap=3),
    rms_norm_case(7, 3, 64),
    rms_norm_case(5, 2, 40, gap=8),
    adaln_case("modulate", 2, 11, 96),
    adaln_case("gated residual", 2, 11, 96),
    blend_case((2, 3, 5, 7), (1,)),
    blend_case((2, 3, 8, 5, 7), (2, 3, 1, 1, 1)),
    solver_case(3, 4, 2, (4, 5, 7)),
    solver_case(2, 1, 3, (3, 4, 6, 5), per_frame=True),
    solver_case(3, 2, 2, (4, 5, 7), keeps=(0, 2)),
    solver_case(2, 1, 2, (3, 4, 6, 5), per_frame=True, keeps=(1,)),
)
"""Small enough that the interpreter takes a second at most for each."""
