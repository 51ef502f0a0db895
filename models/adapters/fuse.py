"""Adapters in a network's weights, and out again: always from the stored base, so that nothing is left behind.

    W = W0 + sum of weight * delta

in fp32, rounded once: to the network's dtype, or to the 8 bits that it holds a layer in. What is stored is the only W0:
none is kept in memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.adapters.file import DENOISER, AdapterFile, Layer
from models.blank import namings
from models.checkpoints.ldm import LdmUNetNames
from models.checkpoints.sd3 import SD3Names
from models.checkpoints.source import Naming, Source, own_names
from models.checkpoints.stored import find_stored
from models.eight_bit import EightBitLinear
from models.mmdit import MMDiT
from models.unet import UNet

Place = tuple[str, Source]
"""A parameter, and how the layer that an adapter names is written relative to it."""


@dataclass(frozen=True)
class Weighted:
    """An adapter and how much of it."""

    adapter: AdapterFile
    weight: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"weight of adapter {self.adapter.path.name} is {self.weight}, expected a finite number")


def adapters_id(adapters: Iterable[Weighted]) -> str:
    """Hash of a set of adapters, whatever their order and file names; empty for none."""
    lines = sorted(f"{each.adapter.sha256} {each.weight!r}" for each in adapters)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""


@dataclass(frozen=True)
class _Change:
    """What one adapter does to one parameter."""

    by: Weighted
    layer: Layer
    source: Source

    def of_shape(self, shape: tuple[int, ...]) -> Tensor:
        return self.source.take(self.by.adapter.delta(self.layer).mul_(self.by.weight), shape)


class Fusible:
    """A network whose weights may carry adapters."""

    def __init__(self, network: nn.Module, folder: Path) -> None:
        """
        Args:
            network: as loaded from ``folder``; its parameters are changed in place.
            folder: its own, such as ``unet`` within a model folder: where its weights are stored.

        Raises:
            ValueError: what is stored there does not fit the network.
        """
        self.network = network
        self.part = DENOISER if isinstance(network, UNet | MMDiT) else folder.name
        self.identity: str | None = ""
        """:func:`adapters_id` of what the weights carry now; None after a failure that left them in between."""
        self._base = find_stored(folder, network, namings(network))
        self._places = _places(network, self._base.own)
        self._changed: frozenset[str] = frozenset()

    def carry(self, adapters: Sequence[Weighted]) -> None:
        """Make the weights carry these adapters and no others; none restores the base to the bit.

        Adapters may change other parts too, whose networks carry them on their own.

        Raises:
            ValueError: an adapter does not fit this network. The weights are then as they were, unless a file could not
                be read to its end: then ``identity`` is None, and the next call puts it right.
        """
        ordered = sorted(adapters, key=lambda each: (each.adapter.sha256, each.weight))
        changes = self._changes(ordered)
        touched = self._changed | changes.keys()
        self._changed, self.identity = touched, None
        for name, stored in self._base.read(sorted(touched)):
            weight = stored.float() if name in changes else stored
            for change in changes.get(name, ()):
                weight += change.of_shape(self._base.own[name])
            self._put(name, weight)
        self._changed, self.identity = frozenset(changes), adapters_id(ordered)

    def check(self, adapters: Sequence[Weighted]) -> None:
        """Raise ValueError when an adapter does not fit this network, which may be on the meta device."""
        self._changes(adapters)

    def _changes(self, adapters: Sequence[Weighted]) -> dict[str, list[_Change]]:
        """What happens to each parameter. Everything that can be wrong with an adapter is found here."""
        changes: dict[str, list[_Change]] = {}
        for each in adapters:
            for layer in each.adapter.layers:
                if layer.part == self.part:
                    self._check(each.adapter, layer)
                    for name, source in self._places[layer.name]:
                        changes.setdefault(name, []).append(_Change(each, layer, source))
        return changes

    def _check(self, adapter: AdapterFile, layer: Layer) -> None:
        if layer.name not in self._places:
            raise ValueError(f"{adapter.path} changes {layer.name} of the {layer.part}, which this network has not")
        for name, source in self._places[layer.name]:
            if not source.fits(adapter.shape(layer), self._base.own[name]):
                shapes = f"{list(adapter.shape(layer))} != {list(self._base.own[name])}"
                raise ValueError(f"{adapter.path}: {layer.name} does not fit this network: {shapes}")
        adapter.check_values(layer)

    @torch.no_grad()
    def _put(self, name: str, weight: Tensor) -> None:
        owner, _, _ = name.rpartition(".")
        if isinstance(module := self.network.get_submodule(owner), EightBitLinear):
            module.hold(weight.to(module.weight.device))
        else:
            self.network.get_parameter(name).copy_(weight)


def _places(network: nn.Module, own: Mapping[str, tuple[int, ...]]) -> dict[str, list[Place]]:
    """By every name that an adapter may have for a layer: the parameters behind it.

    Names are the network's own, or those of the published single file; each with dots, or with underscores.
    """
    places: dict[str, list[Place]] = {}
    for parameter, shape in own.items():
        if not parameter.endswith(".weight") or len(shape) < 2:
            continue
        for source in _sources(network)(parameter):
            layer = source.name.removesuffix(".weight")
            for name in {layer, layer.replace(".", "_")}:
                places.setdefault(name, []).append((parameter, source))
    return places


def _sources(network: nn.Module) -> Naming:
    if isinstance(network, UNet):
        published: Naming = LdmUNetNames(network.spec)
    elif isinstance(network, MMDiT):
        published = SD3Names(network.spec)
    else:
        published = _with_and_without_wrapper
    return lambda name: tuple(dict.fromkeys([*own_names(name), *published(name)]))


def _with_and_without_wrapper(name: str) -> Sequence[Source]:
    """Text encoders, whose layers adapters call ``text_model...`` whether or not the network has that level."""
    return (Source(name), Source(name.removeprefix("text_model.")), Source(f"text_model.{name}"))
