"""Single files of whole pipelines: the published key lists, and tiny files of the same layouts made from folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.blank import blank_network, namings
from models.checkpoints.single_file import LAYOUTS, Layout
from models.checkpoints.source import Source
from models.checkpoints.stored import find_stored
from models.spec.config import read_json

KEYS = Path(__file__).resolve().parent.parent / "models" / "checkpoints" / "keys"
LAYOUT = {layout.name: layout for layout in LAYOUTS}
PARTS = {
    "sd1": ("unet", "vae", "text_encoder"),
    "sd2": ("unet", "vae", "text_encoder"),
    "x4-upscaler": ("unet", "vae", "text_encoder"),
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
    "sdxl-refiner": ("unet", "vae", "text_encoder_2"),
    "svd": ("unet", "vae", "image_encoder"),
    "sd3": ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"),
}


def key_list(name: str, prefix: str = "") -> dict[str, Tensor]:
    """A committed list of keys and shapes, as tensors without memory."""
    lines = (line.split() for line in (KEYS / f"{name}.txt").read_text().splitlines())
    return {prefix + key: torch.empty([int(n) for n in shape.split("x")], device="meta") for key, shape in lines}


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def write_single_file(folder: Path, path: Path, layout: str) -> dict[str, Tensor]:
    """Write all networks of a model folder into one file of a layout, and return its tensors."""
    tensors: dict[str, Tensor] = {}
    for part in PARTS[layout]:
        tensors |= published_part(folder / part, LAYOUT[layout], part)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return tensors


def published_part(folder: Path, layout: Layout, part: str) -> dict[str, Tensor]:
    """The tensors of one network as a layout has them."""
    network = blank_network(read_json(folder / "config.json"))
    naming = namings(network).in_single_file
    assert naming is not None
    thirds: dict[str, dict[int, Tensor]] = {}
    heads: dict[str, int] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in find_stored(folder, network, namings(network)).read():
        source = naming(layout, part)(name)[0]
        if source.or_identity:
            continue
        if source.third is None:
            tensors[source.name] = _as_written(tensor, source)
        else:
            thirds.setdefault(source.name, {})[source.third] = tensor
            heads[source.name] = source.heads
    return tensors | {name: _one_matrix(parts, heads[name]) for name, parts in thirds.items()}


def _one_matrix(thirds: Mapping[int, Tensor], heads: int) -> Tensor:
    """Queries, keys and values of each head one behind the other."""
    by_head = [thirds[i].unflatten(0, (heads, -1)) for i in range(3)]
    return torch.cat(by_head, dim=1).flatten(0, 1)


def _as_written(tensor: Tensor, source: Source) -> Tensor:
    if source.transposed:
        tensor = tensor.T
    if source.swapped:
        tensor = torch.cat(tensor.chunk(2)[::-1])
    is_convolution = ".attn_1." in source.name and tensor.dim() == 2
    return tensor[..., None, None] if is_convolution else tensor
