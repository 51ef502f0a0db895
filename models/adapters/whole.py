"""Sets of adapters and whole models: which parts of a model a set changes, and the set in the weights of those parts.

The networks that are changed are the caller's own. Weights that others run on stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import nn

from models.adapters.file import DENOISER, read_adapter
from models.adapters.fuse import Fusible, Weighted, adapters_id
from models.blank import blank_network
from models.conditioners.nothing import NoConditioner
from models.conditioners.sd3 import SD3Conditioner
from models.conditioners.sdxl import SDXLRefinerConditioner
from models.conditioners.text import ClipText
from models.families.row import Denoiser
from models.families.text_to_image import TextConditioner
from models.spec.config import read_config, reading
from models.spec.model import ModelSpec


@dataclass(frozen=True)
class AdapterSet:
    """A set of adapters that fits a model, by its files: plain data, and nothing that is open."""

    weights: tuple[tuple[Path, float], ...]
    """File and weight of each."""
    identity: str
    """:func:`adapters_id`."""
    parts: frozenset[str]
    """:func:`parts_changed`."""

    @classmethod
    def of(cls, spec: ModelSpec, adapters: Sequence[Weighted]) -> AdapterSet:
        """The set for this model; errors as :func:`parts_changed`."""
        weights = tuple((each.adapter.path, each.weight) for each in adapters)
        return cls(weights, adapters_id(adapters), parts_changed(spec, adapters))

    def read(self) -> list[Weighted]:
        """The adapters, from their files.

        Raises:
            ValueError: a file is gone, damaged, or not what it was.
        """
        found = [Weighted(read_adapter(path), weight) for path, weight in self.weights]
        if adapters_id(found) != self.identity:
            names = ", ".join(path.name for path, _ in self.weights)
            raise ValueError(f"{names}: changed on disk; ask again to use what is there")
        return found


def parts_changed(spec: ModelSpec, adapters: Sequence[Weighted]) -> frozenset[str]:
    """``DENOISER`` and the folders of the text encoders whose weights the set changes.

    Everything that can be wrong with a set is found here: the headers of the model and the whole adapters are read.

    Raises:
        ValueError: an adapter changes a part or a layer that the model has not, has another shape, or holds values
            that are not finite.
    """
    folders = {DENOISER: spec.folder / spec.system.denoiser}
    folders |= {path.name: path for path in spec.folder.glob("text_encoder*") if path.is_dir()}
    changed = frozenset[str]().union(*(each.adapter.parts for each in adapters))
    for each in adapters:
        if strange := sorted(each.adapter.parts - folders.keys()):
            raise ValueError(f"{each.adapter.path} changes the {strange[0]}, which model {spec.name!r} has not")
    for part in sorted(changed):
        with reading(path := folders[part] / "config.json"):
            blank = blank_network(read_config(path))
        Fusible(blank, folders[part]).check(adapters)
    return changed


def fuse_denoiser(denoisers: Mapping[str, Denoiser], spec: ModelSpec, adapters: Sequence[Weighted]) -> None:
    """Put the set into a model's denoising network, which its variants share; a refiner stays as it is.

    Args:
        denoisers: torch networks, as :func:`models.families.text_to_image.load_denoisers` makes them.
        spec: of the model that they were read from.
        adapters: the whole set; what it does to other parts is left out.

    Raises:
        ValueError: as :meth:`Fusible.carry`.
    """
    network = spec.system.denoiser
    Fusible(cast(nn.Module, denoisers[network]), spec.folder / network).carry(adapters)


def fuse_text_encoders(conditioner: TextConditioner, spec: ModelSpec, adapters: Sequence[Weighted]) -> None:
    """Put the set into those of a model's text encoders that it changes, all of which are on torch.

    Raises:
        ValueError: as :meth:`Fusible.carry`.
    """
    for part, network in _text_encoders(conditioner).items():
        if any(part in each.adapter.parts for each in adapters):
            Fusible(network, spec.folder / part).carry(adapters)


def _text_encoders(conditioner: TextConditioner) -> dict[str, nn.Module]:
    """By their folders."""
    if isinstance(conditioner, NoConditioner):
        return {}
    refiner = isinstance(conditioner, SDXLRefinerConditioner)
    names = ("text_encoder_2",) if refiner else ("text_encoder", "text_encoder_2")
    towers = zip(names, conditioner.text.towers, strict=False)
    networks: dict[str, nn.Module] = {name: cast(ClipText, tower.network).clip for name, tower in towers}
    if isinstance(conditioner, SD3Conditioner) and conditioner.t5 is not None:
        networks["text_encoder_3"] = conditioner.t5.network
    return networks
