"""What a file or folder of weights is: which system, what is in it, what is wrong and what is missing. Only headers are
read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from models.adapters.file import AdapterFile, read_adapter
from models.blank import Config, blank_network, namings
from models.checkpoints.single_file import Layout, detect
from models.checkpoints.stored import SINGLE_SUFFIXES, Stored, find_stored, stored_part
from models.checkpoints.systems import System, systems
from models.checkpoints.tensors import TensorFile, open_tensors
from models.spec.config import read_config, reading
from models.spec.model import ModelSpec


@dataclass(frozen=True)
class Part:
    """One network."""

    name: str
    """Its folder's name."""
    parameters: int = 0
    dtypes: tuple[str, ...] = ()
    """As safetensors names them."""
    fault: str = ""
    """Why it cannot be loaded; empty if it can."""


@dataclass(frozen=True)
class Inspection:
    """What was found."""

    path: Path
    kind: str
    """A model folder's pipeline, ``single file (LAYOUT)`` or ``adapter``."""
    system: str
    """The published system that it is, or whose shape it has; empty where none fits."""
    parts: tuple[Part, ...]
    missing: tuple[str, ...] = ()
    """What must be put beside it before it can be served."""
    licence: str | None = None
    """Where it states one; of a single file the one that the system was published under."""

    @property
    def whole(self) -> bool:
        """Whether everything that is there can be loaded, and nothing is missing."""
        return not self.missing and not any(part.fault for part in self.parts)


def inspect(path: Path) -> Inspection:
    """Look at a model folder, a single file or an adapter.

    Raises:
        ValueError: it is none of these; the message says what was found.
    """
    if path.is_dir():
        return _folder(path)
    if path.suffix not in SINGLE_SUFFIXES:
        raise ValueError(f"{path} is no model folder and no file of weights ({', '.join(SINGLE_SUFFIXES)})")
    file = open_tensors(path)
    try:
        layout = detect(file.entries.keys())
    except ValueError as unknown:
        try:
            return _adapter(read_adapter(path))
        except ValueError as error:
            raise ValueError(f"{unknown}; and no adapter: {error}") from error
    return _single_file(file, layout)


def _folder(folder: Path) -> Inspection:
    spec = ModelSpec.read(folder)
    configs = sorted(folder.glob("*/config.json"))
    parts = tuple(_part_of_folder(path) for path in configs)
    wanted = {"text_encoder": "tokenizer", "image_encoder": "feature_extractor"}
    beside = (part.name.replace(one, other) for part in parts for one, other in wanted.items() if one in part.name)
    missing = tuple(name for name in beside if not (folder / name).is_dir())
    system = next((s.name for s in systems().values() if _has_shapes_of(s, folder)), "")
    return Inspection(folder, spec.pipeline, system, parts, missing, spec.licence)


def _part_of_folder(config: Path) -> Part:
    try:
        with reading(config):
            network = blank_network(read_config(config))
        return _part(config.parent.name, network, find_stored(config.parent, network, namings(network)))
    except ValueError as error:
        return Part(config.parent.name, fault=str(error))


def _has_shapes_of(system: System, folder: Path) -> bool:
    """Whether the denoising network of a folder has the published sizes."""
    for part in ("unet", "transformer"):
        if part in system.parts and (folder / part / "config.json").exists():
            config = read_config(folder / part / "config.json")
            return all(config.get(key, value) == value for key, value in system.parts[part].items() if key in config)
    return False


def _single_file(file: TensorFile, layout: Layout) -> Inspection:
    candidates = [system for system in systems().values() if system.layout == layout.name]
    inspected = [(system, _parts_of(file, layout, system.parts)) for system in candidates]
    if not inspected:
        raise ValueError(f"{file.path} is of layout {layout.name!r}, of which only the networks can be loaded")
    system, parts = min(inspected, key=lambda each: sum(bool(part.fault) for part in each[1]))
    whole = not any(part.fault for part in parts)
    absent = tuple(name for name in system.parts if name not in {part.name for part in parts})
    kind = f"single file ({layout.name})"
    missing = (*absent, *system.tokenizers) if whole else system.tokenizers
    return Inspection(file.path, kind, system.name if whole else "", parts, missing, system.licence if whole else None)


def _parts_of(file: TensorFile, layout: Layout, configs: Mapping[str, Config]) -> tuple[Part, ...]:
    present = [name for name in configs if layout.part_keys(name, file.entries)]
    return tuple(_part_of_file(file, layout, name, configs[name]) for name in present)


def _part_of_file(file: TensorFile, layout: Layout, name: str, config: Config) -> Part:
    network = blank_network(config)
    try:
        return _part(name, network, stored_part(file, layout, name, network, namings(network)))
    except ValueError as error:
        return Part(name, fault=str(error))


def _part(name: str, network: nn.Module, stored: Stored) -> Part:
    return Part(name, sum(parameter.numel() for parameter in network.parameters()), tuple(sorted(stored.dtypes)))


def _adapter(adapter: AdapterFile) -> Inspection:
    sizes: dict[str, int] = {}
    for layer in adapter.layers:
        sizes[layer.part] = sizes.get(layer.part, 0) + adapter.parameters(layer)
    parts = tuple(Part(name, size, adapter.dtypes) for name, size in sorted(sizes.items()))
    return Inspection(adapter.path, "adapter", "", parts)
