"""An op's work as launches of Triton kernels, written down before any of them runs.

A plan is made from shapes, strides and dtypes alone, so it can be made of meta tensors: what is compiled ahead of time
on a machine without a GPU is what a GPU would be asked to run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kernels.language import INTERPRETED

ARCHITECTURES = {80: "sm_80", 89: "sm_89", 90: "sm_90", 100: "sm_100"}
"""Compute capabilities (times ten) that tiles are chosen for."""
INTERPRETER = 0
"""Stands for an architecture where kernels are interpreted: small tiles, since a program costs milliseconds."""
_STANDS_FOR = {86: 89, 87: 80, 103: 100, 120: 89, 121: 89}
"""Of other chips, the one whose tiles fit: 86, 120 and 121 have 99 KiB of shared memory for a block, as 89 has."""


@dataclass(frozen=True)
class Tile:
    """How a kernel cuts its work."""

    sizes: Mapping[str, int]
    """Block sizes by the name of the kernel's argument."""
    num_warps: int
    num_stages: int = 1


@dataclass(frozen=True)
class Launch:
    """One launch of one kernel."""

    kernel: Any
    """A function compiled by ``jit``."""
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    """By name, all but the block sizes: tensors, numbers, and None for an input that is left out."""
    tile: Tile

    def run(self) -> None:
        """Launch it on the device of its tensors."""
        options = {"num_warps": self.tile.num_warps, "num_stages": self.tile.num_stages}
        self.kernel[self.grid](**self.arguments, **self.tile.sizes, **options)


@dataclass(frozen=True)
class Plan:
    """Launches in their order, and what they leave behind."""

    output: Tensor
    launches: tuple[Launch, ...] = field(default=())

    def run(self) -> Tensor:
        """Launch everything; the output is written when the device gets there."""
        for launch in self.launches:
            launch.run()
        return self.output


def architecture(device: torch.device) -> int | None:
    """The key of a device in a table of tiles, None for a device that no tile was chosen for."""
    if device.type != "cuda":
        return INTERPRETER if INTERPRETED else None
    major, minor = torch.cuda.get_device_capability(device)
    capability = 10 * major + minor
    capability = _STANDS_FOR.get(capability, capability)
    return capability if capability in ARCHITECTURES else None


def planned_for(tensor: Tensor) -> int:
    """The architecture to plan for, where the tensor is.

    Raises:
        ValueError: no tiles were chosen for that device.
    """
    found = architecture(tensor.device)
    if found is None:
        raise ValueError(f"device={tensor.device}: expected a CUDA device of {', '.join(ARCHITECTURES.values())}")
    return found


def cdiv(size: int, block: int) -> int:
    """How many blocks cover ``size``."""
    return -(-size // block)


def next_power_of_2(size: int) -> int:
    """The smallest power of two that is at least ``size``: what the side of a tile must be."""
    return 1 << (size - 1).bit_length()
