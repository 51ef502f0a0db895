"""Adapter files in every published naming, for the layers of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RANK, ALPHA = 2, 3.0


def low_rank(network: nn.Module, layers: Iterable[str], seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Down [r, in] and up [out, r] by layer, large enough to change what a network makes."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for layer in layers:
        out, *inner = network.get_parameter(f"{layer}.weight").shape
        down = torch.randn([RANK, *inner], generator=generator) / inner[0] ** 0.5
        made[layer] = (down, torch.randn([out, RANK, *[1] * (len(inner) - 1)], generator=generator))
    return made


def write_peft(path: Path, matrices: Mapping[str, tuple[Tensor, Tensor]], prefix: str) -> Path:
    """As diffusers and peft write them; without an alpha, so that the scale is 1."""
    tensors = {}
    for layer, (down, up) in matrices.items():
        tensors |= {f"{prefix}{layer}.lora_A.weight": down, f"{prefix}{layer}.lora_B.weight": up}
    save_file(tensors, path)
    return path


def write_kohya(
    path: Path, matrices: Mapping[str, tuple[Tensor, Tensor]], prefix: str, name: Callable[[str], str] = str
) -> Path:
    """As kohya's scripts write them: names with underscores, and an alpha for each layer."""
    tensors = {}
    for layer, (down, up) in matrices.items():
        written = prefix + name(layer).replace(".", "_")
        tensors |= {f"{written}.lora_down.weight": down, f"{written}.lora_up.weight": up}
        tensors[f"{written}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, path)
    return path
