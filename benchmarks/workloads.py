"""What published networks ask of every kernel: shapes for compiling ahead of time and for timing on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.ops import OPS


class Maker(Protocol):
    """Makes the tensors of a workload: empty ones on ``meta``, random ones on a GPU."""

    def __call__(self, *shape: int, full: bool = False) -> Tensor:
        """In the dtype under test, or in fp32 where it is ``full``."""


@dataclass(frozen=True)
class Workload:
    """One call that a published network makes."""

    op: str
    name: str
    inputs: Callable[[Maker], tuple[Any, ...]]
    flop: float = 0.0
    """Of its matrix products; 0 where the time goes into memory."""
    compiled: bool = True
    """Whether it is in the table of what is compiled ahead of time; not if another one is like it for a compiler."""

    def moved_bytes(self, dtype: torch.dtype) -> int:
        """Every input once and the output once."""
        inputs = self.inputs(maker("meta", dtype))
        tensors = [*_tensors(inputs), OPS[self.op].eager(*inputs)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def maker(device: str, dtype: torch.dtype) -> Maker:
    """Random tensors on a device, always the same ones in the same order; empty ones on ``meta``."""
    generator = None if device == "meta" else torch.Generator(device).manual_seed(0)

    def make(*shape: int, full: bool = False) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32 if full else dtype)

    return make


def _attention(name: str, batch: int, queries: int, keys: int, heads: int, head_dim: int) -> Workload:
    width = heads * head_dim

    def inputs(make: Maker) -> tuple[Any, ...]:
        return make(batch, queries, width), make(batch, keys, width), make(batch, keys, width), heads, False

    return Workload("attention", f"{name}: {queries} x {keys}, {heads} x {head_dim}", inputs,
                    4.0 * batch * queries * keys * width)  # fmt: skip


def _temporal_attention(name: str, batch: int, frames: int, pixels: int, heads: int, head_dim: int) -> Workload:
    shape = (batch, frames, pixels, heads * head_dim)

    def inputs(make: Maker) -> tuple[Any, ...]:
        return make(*shape), make(*shape), make(*shape), heads

    return Workload("temporal_attention", f"{name}: {frames} frames, {pixels} pixels, {heads} x {head_dim}", inputs)


def _taps(make: Maker, channels: int) -> Tensor:
    """[C, C, 3, 1, 1], in memory as a network on a GPU has it: taps, then input channels, then output channels."""
    return make(3, channels, channels).permute(2, 1, 0)[..., None, None]


def _conv(name: str, batch: int, frames: int, pixels: int, channels: int) -> Workload:
    def inputs(make: Maker) -> tuple[Any, ...]:
        x = make(batch, frames * pixels, channels)
        return x, _taps(make, channels), make(channels), frames

    flop = 6.0 * batch * frames * pixels * channels**2
    return Workload("temporal_conv", f"{name}: {frames} frames, {pixels} pixels, {channels} channels", inputs, flop)


def _resnet(name: str, batch: int, frames: int, pixels: int, channels: int, timed: bool = True) -> Workload:
    def inputs(make: Maker) -> tuple[Any, ...]:
        weights = [
            tensor
            for _ in range(2)
            for tensor in (make(channels), make(channels), _taps(make, channels), make(channels))
        ]
        added = make(batch, frames, channels) if timed else None
        return make(batch, frames * pixels, channels), weights, added, make(batch, frames, full=True), 32, 1e-5

    flop = 12.0 * batch * frames * pixels * channels**2
    return Workload("temporal_resnet", f"{name}: {frames} frames, {pixels} pixels, {channels} channels", inputs, flop)


def _group_norm(name: str, batch: int, rows: int, channels: int, silu: bool = True) -> Workload:
    def inputs(make: Maker) -> tuple[Any, ...]:
        return make(batch, rows, channels), make(channels), make(channels), 32, 1e-5, silu

    return Workload("group_norm", f"{name}: {rows} x {channels}{'' if silu else ', no SiLU'}", inputs)


def _geglu(name: str, rows: int, channels: int) -> Workload:
    return Workload("geglu", f"{name}: {rows} x {channels}", lambda make: (make(rows, 2 * channels),))


def _modulate(name: str, batch: int, tokens: int, channels: int) -> Workload:
    def inputs(make: Maker) -> tuple[Any, ...]:
        shift, scale, _ = make(batch, 1, 3 * channels).chunk(3, -1)
        return make(batch, tokens, channels), scale, shift, 1e-6

    return Workload("modulate", f"{name}: {tokens} x {channels}", inputs)


def _gated_residual(name: str, batch: int, tokens: int, channels: int) -> Workload:
    def inputs(make: Maker) -> tuple[Any, ...]:
        gate = make(batch, 1, 3 * channels).chunk(3, -1)[2]
        return make(batch, tokens, channels), gate, make(batch, tokens, channels)

    return Workload("gated_residual", f"{name}: {tokens} x {channels}", inputs)


def _rms_norm(name: str, rows: int, heads: int, head_dim: int) -> Workload:
    return Workload(
        "rms_norm",
        f"{name}: {rows} x {heads} x {head_dim}",
        lambda make: (make(rows, heads * head_dim), make(head_dim), 1e-6),
    )


def _blend(name: str, shape: tuple[int, ...]) -> Workload:
    return Workload("blend", f"{name}: {shape}", lambda make: (make(*shape), make(*shape), make(1)))


def _solver(name: str, rows: int, slots: int, lanes: int, shape: tuple[int, ...], keeps: bool = False) -> Workload:
    def inputs(make: Maker) -> tuple[Any, ...]:
        numbers = (make(rows, full=True), make(rows, full=True), make(rows, slots, slots, full=True))
        state, outputs = make(rows, slots, *shape, full=True), make(rows, lanes, *shape)
        weights = make(rows, lanes, *shape[:1] if len(shape) == 4 else (), full=True)
        last = (make(rows, slots, full=True), make(rows, full=True), make(rows, *shape, full=True))
        keep: tuple[Tensor | None, ...] = (None, None, None)
        if keeps:
            mask = make(rows, 1, *shape[-2:], full=True)
            keep = (mask, make(rows, 2, *shape, full=True), make(rows, 2, full=True))
        return state, outputs, weights, *numbers, *last, *keep

    kind = f"{name}: {slots} slots, {lanes} lanes, {shape}{', inpainting' if keeps else ''}"
    return Workload("solver_step", kind, inputs)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list):
            yield from _tensors(value)


WORKLOADS = (
    _attention("SDXL 1024, CFG", 2, 4096, 4096, 10, 64),
    replace(_attention("SDXL 1024, CFG", 2, 1024, 1024, 20, 64), compiled=False),
    _attention("SDXL 1024, prompt, CFG", 2, 4096, 77, 10, 64),
    replace(_attention("SVD-XT, CFG", 50, 9216, 9216, 5, 64), compiled=False),
    _attention("SD3-medium, CFG", 2, 4429, 4429, 24, 64),
    _attention("SD 1.5, CFG", 2, 4096, 4096, 8, 40),
    _attention("SD 1.5, prompt, CFG", 2, 4096, 77, 8, 40),
    _attention("SD 1.5, CFG", 2, 1024, 1024, 8, 80),
    _attention("SD 1.5, CFG", 2, 256, 256, 8, 160),
    _attention("SD 1.5, prompt, CFG", 2, 256, 77, 8, 160),
    _attention("72 channels a head", 2, 4096, 4096, 16, 72),
    _attention("128 channels a head", 2, 4096, 4096, 24, 128),
    _temporal_attention("SVD-XT, CFG", 2, 25, 9216, 5, 64),
    replace(_temporal_attention("SVD-XT, CFG", 2, 25, 576, 20, 64), compiled=False),
    _temporal_attention("SVD, CFG", 2, 14, 9216, 5, 64),
    _temporal_attention("Video LDM", 2, 8, 4096, 8, 40),
    _temporal_attention("Video LDM", 2, 8, 1024, 8, 80),
    _temporal_attention("Video LDM", 2, 8, 256, 8, 160),
    _conv("SVD-XT, CFG", 2, 25, 9216, 320),
    replace(_conv("SVD-XT, CFG", 2, 25, 576, 1280), compiled=False),
    _resnet("SVD-XT, CFG", 2, 25, 9216, 320),
    _resnet("SVD-XT, CFG", 2, 25, 2304, 640),
    _resnet("SVD-XT, CFG", 2, 25, 576, 1280),
    replace(_resnet("SVD-XT, CFG", 2, 25, 144, 1280), compiled=False),
    _resnet("SVD decoder", 1, 8, 589824, 128, timed=False),
    _group_norm("SDXL 1024, CFG", 2, 16384, 320),
    replace(_group_norm("SDXL 1024, CFG", 2, 4096, 640), compiled=False),
    _group_norm("SDXL 1024, CFG", 2, 1024, 1920),
    _group_norm("SDXL 1024, CFG", 2, 1024, 1280, silu=False),
    _group_norm("SDXL decoder", 1, 1048576, 128),
    _group_norm("SVD-XT, CFG", 50, 9216, 320),
    _geglu("SDXL 1024, CFG", 8192, 2560),
    replace(_geglu("SDXL 1024, CFG", 2048, 5120), compiled=False),
    _geglu("SVD-XT, CFG", 460800, 1280),
    _modulate("SD3-medium, CFG", 2, 4096, 1536),
    replace(_modulate("SD3.5-large, CFG", 2, 4096, 2432), compiled=False),
    _gated_residual("SD3-medium, CFG", 2, 4096, 1536),
    _rms_norm("SD3.5-large, CFG", 8192, 38, 64),
    _blend("SVD-XT, CFG", (2, 230400, 320)),
    _solver("SDXL 1024, Euler, CFG", 8, 1, 2, (4, 128, 128)),
    _solver("SDXL 1024, UniPC, CFG", 8, 4, 2, (4, 128, 128)),
    _solver("SDXL 1024, Euler, CFG", 8, 1, 2, (4, 128, 128), keeps=True),
    _solver("SVD-XT, Euler, CFG", 2, 1, 2, (25, 4, 72, 128)),
)
"""By op, the shapes that carry most of its time in the published networks, and one for each head dimension."""
