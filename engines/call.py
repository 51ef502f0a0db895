"""The call that every session has: a network's own, checked by name before anything runs."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from engines.cache import sha256_of_files
from engines.signature import Port, Signature, Sizes

Output = Tensor | tuple[Tensor, ...]
TORCH_DTYPE = {"float32": torch.float32, "int64": torch.int64}


class Session(Protocol):
    """A network on some back end, called like the torch module that it was exported from."""

    signature: Signature
    numerics: str
    """What the bytes of its output depend on."""

    def __call__(self, *inputs: Tensor) -> Output: ...


@dataclass(frozen=True)
class Bound:
    """One call: contiguous tensors for the graph's inputs, and new ones for its outputs."""

    inputs: tuple[tuple[Port, Tensor], ...]
    outputs: tuple[tuple[Port, Tensor], ...]
    sizes: dict[str, int]
    """What each symbol stands for in this call."""

    @property
    def result(self) -> Output:
        """What the network returns: a tensor, or a tuple where it has several outputs."""
        tensors = tuple(tensor for _, tensor in self.outputs)
        return tensors[0] if len(tensors) == 1 else tensors


def bind(signature: Signature, inputs: Sequence[Tensor], device: torch.device) -> Bound:
    """Check the inputs of one call and make room for its outputs. Inputs that are not contiguous are copied.

    Raises:
        TypeError: not tensors, of another dtype, or not as many as the network takes.
        ValueError: on another device, or of a shape that the network does not take.
    """
    ports = signature.inputs
    if len(inputs) != len(ports):
        names = ", ".join(port.name for port in ports)
        raise TypeError(f"expected {len(ports)} tensors ({names}), got {len(inputs)}")
    for port, tensor in zip(ports, inputs, strict=True):
        _require(port, tensor, device)
    sizes = signature.match([tensor.shape for tensor in inputs])
    return Bound(
        tuple((port, t.contiguous()) for port, t in zip(ports, inputs, strict=True) if not port.empty),
        tuple(
            (port, torch.empty(port.shape(sizes), dtype=TORCH_DTYPE[port.dtype], device=device))
            for port in signature.outputs
        ),
        sizes,
    )


def _require(port: Port, tensor: Tensor, device: torch.device) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{port.name} is a {type(tensor).__name__}, expected a torch tensor")
    if tensor.dtype != TORCH_DTYPE[port.dtype]:
        raise TypeError(f"{port.name} is {tensor.dtype}, expected {TORCH_DTYPE[port.dtype]}")
    if tensor.device.type != device.type:
        raise ValueError(f"{port.name} is on {tensor.device}, expected {device}")


def examples(signature: Signature, sizes: Sizes, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of every kind that the signature names, the same for the same seed; CPU tensors.

    They come from a generator of their own, so that the caller's random numbers stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    return tuple(_example(port, port.shape(sizes), generator) for port in signature.inputs)


def _example(port: Port, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    dtype = TORCH_DTYPE[port.dtype]
    if port.values == "normal":
        return torch.randn(shape, generator=generator, dtype=dtype)
    values = torch.rand(shape, generator=generator) * port.below
    return (values.floor() if port.values == "whole" else values).to(dtype)


def outputs_of(result: Output) -> tuple[Tensor, ...]:
    """What a network returned, as a tuple in any case."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def graph_digest(path: Path) -> str:
    """SHA-256 of a graph or plan and of the weights that lie beside it, in hexadecimal."""
    return sha256_of_files(_with_weights(path))


def file_bytes(path: Path) -> int:
    """Size of a graph or plan and of the weights that lie beside it."""
    return sum(file.stat().st_size for file in _with_weights(path))


def _with_weights(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}*"))


def processor() -> str:
    """The architecture, and on x86 the widest vector instructions: libraries choose their code by them."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:  # not Linux
        words = {platform.processor()}
    widest = next((name for name in ("avx512f", "avx2", "avx") if name in words), "")
    return f"{platform.machine()}-{widest}".rstrip("-")
