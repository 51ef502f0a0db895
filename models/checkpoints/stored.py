"""The weights of one network as they are stored: found, compared with the network to the letter, and read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.checkpoints.single_file import Layout, detect
from models.checkpoints.source import Naming, Shape, Source
from models.checkpoints.tensors import FLOATS, Entry, TensorFile, open_tensors
from models.spec.config import read_json

STEMS = ("diffusion_pytorch_model", "model")
"""Beginnings of weight files: as diffusers calls them, and as transformers does."""
SINGLE_SUFFIXES = (".safetensors", ".ckpt")
_POSITION_IDS = "position_ids"
_SCALE = "scale_factor"


class Stored:
    """Stored weights that fit a network: every parameter has its place, and nothing else is there."""

    def __init__(
        self, where: Path, files: Sequence[TensorFile], own: Mapping[str, Shape], naming: Naming, keys: Iterable[str]
    ) -> None:
        """
        Args:
            where: for messages.
            files: one, or the shards of one.
            own: the network's parameters and buffers with their shapes.
            naming: where a parameter may lie.
            keys: the stored names that belong to this network.

        Raises:
            ValueError: keys, shapes or dtypes do not fit to the letter.
        """
        self.where = where
        self.own = own
        self._all_files = files
        self._files = {name: file for file in files for name in file.entries}
        keys = {key for key in keys if not key.endswith(_POSITION_IDS)}
        found = {name: [s for s in naming(name) if s.name in keys] or _absent(naming(name)) for name in own}
        missing = sorted(name for name, sources in found.items() if not sources)
        unexpected = sorted(keys - {source.name for sources in found.values() for source in sources})
        if missing or unexpected:
            raise ValueError(f"{where}: missing keys {missing[:5]}, unexpected keys {unexpected[:5]}")
        self.sources = {name: sources[0] for name, sources in found.items()}
        self._check_entries()

    @property
    def scale(self) -> float | None:
        """What latents were scaled by in training, where a single file states it: latent diffusion measures it where
        latents are to have unit variance, and writes it beside the weights alone."""
        for file in self._all_files:
            if (entry := file.entries.get(_SCALE)) is not None and math.prod(entry.shape) == 1:
                return float(file.read(_SCALE))
        return None

    @property
    def dtypes(self) -> set[str]:
        """The dtypes found, as safetensors names them."""
        return {self._entry(source).dtype for source in self.sources.values() if source.name in self._files}

    def read(self, names: Iterable[str] | None = None, mapped: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Parameters by name, in the dtype of the file; a stored tensor that several share is read once.

        Args:
            names: which; None for all of them.
            mapped: whether those that are stored as the network has them stay in the file, as
                :meth:`models.checkpoints.tensors.TensorFile.map` says, and are not read.

        Raises:
            ValueError: the file cannot be read any more.
        """
        by_key: dict[str, list[str]] = {}
        for name in self.own if names is None else names:
            by_key.setdefault(self.sources[name].name, []).append(name)
        for key, owners in by_key.items():
            stored = self._take(key, mapped) if key in self._files else torch.eye(*self.own[owners[0]])
            for name in owners:
                yield name, self.sources[name].take(stored, self.own[name])

    def _take(self, key: str, mapped: bool) -> Tensor:
        file = self._files[key]
        return file.map(key) if mapped else file.read(key)

    def _entry(self, source: Source) -> Entry:
        return self._files[source.name].entries[source.name]

    def _check_entries(self) -> None:
        wrong = []
        for name, source in self.sources.items():
            if source.name not in self._files:
                continue
            entry = self._entry(source)
            if entry.dtype not in FLOATS:
                raise ValueError(f"{self.where}: {source.name} is {entry.dtype}, expected one of {', '.join(FLOATS)}")
            if not source.fits(entry.shape, self.own[name]):
                wrong.append(f"{source.name} {entry.shape} != {self.own[name]}")
        if wrong:
            raise ValueError(f"{self.where}: shapes differ from the config: {wrong[:5]}")


@dataclass(frozen=True)
class Namings:
    """How published files call the parameters of one network."""

    in_folder: Naming
    """In weight files of its own."""
    in_single_file: Callable[[Layout, str], Naming] | None = None
    """In the single file of a layout, under the name of a part; None for a network that is in none."""
    surplus: str = r"(?!)"
    """Pattern of keys in single files that belong to a layer which the network leaves out."""


def find_stored(folder: Path, network: nn.Module, namings: Namings) -> Stored:
    """The stored weights of a network: in its own ``folder``, or else in the single file beside that folder.

    Args:
        folder: such as ``unet`` within a model folder.
        network: may be on the meta device.
        namings: the network's.

    Raises:
        ValueError: there are no weights, or they do not fit the network to the letter.
    """
    files = weight_files(folder)
    if files[0].parent == folder:
        opened = [open_tensors(path) for path in files]
        keys = [key for file in opened for key in file.entries]
        if len(keys) != len(set(keys)):
            raise ValueError(f"{folder}: the same key is in several shards")
        return Stored(folder, opened, shapes(network), namings.in_folder, keys)
    single = open_tensors(files[0])
    return stored_part(single, detect(single.entries.keys()), folder.name, network, namings)


def stored_part(file: TensorFile, layout: Layout, part: str, network: nn.Module, namings: Namings) -> Stored:
    """The stored weights of one part of a single file; as :func:`find_stored`."""
    if part not in layout.scopes or namings.in_single_file is None:
        raise ValueError(f"{file.path} is of layout {layout.name!r}, which has no {part}")
    if strangers := layout.strangers(file.entries):
        raise ValueError(f"{file.path}: unexpected keys {strangers[:5]}")
    keys = [key for key in layout.part_keys(part, file.entries) if not re.fullmatch(namings.surplus, key)]
    return Stored(file.path, [file], shapes(network), namings.in_single_file(layout, part), keys)


def shapes(network: nn.Module) -> dict[str, Shape]:
    """The shape of everything that a checkpoint of the network holds, by name."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of one network's folder: one file or the shards its index names, or else the
    single file of the whole model, directly in the folder above.

    Raises:
        ValueError: there is none, several single files, or an index that makes no sense.
    """
    for stem in STEMS:
        for name, index in _variants(stem):
            if (folder / name).exists():
                return [folder / name]
            if (folder / index).exists():
                return _shards(folder / index)
    singles = sorted(path for path in folder.parent.glob("*") if path.suffix in SINGLE_SUFFIXES and path.is_file())
    if len(singles) == 1:
        return singles
    if singles:
        raise ValueError(f"{folder.parent} holds several single files, {', '.join(p.name for p in singles)}; keep one")
    wanted = f"{STEMS[0]}.safetensors" if folder.name not in _ENCODERS else f"{STEMS[1]}.safetensors"
    raise ValueError(f"{folder} holds neither {wanted} nor its fp16 variant, and no single file lies beside it")


def stored_numbers(folder: Path) -> int:
    """How many numbers are stored for the network of a folder, by the headers of its files.

    Raises:
        ValueError: there are no weights, or a file is not what its name says.
    """
    files = [open_tensors(path) for path in weight_files(folder)]
    entries = {name: entry for file in files for name, entry in file.entries.items()}
    if files[0].path.parent != folder:
        layout = detect(entries.keys())
        if folder.name not in layout.scopes:
            raise ValueError(f"{files[0].path} is of layout {layout.name!r}, which has no {folder.name}")
        entries = {name: entries[name] for name in layout.part_keys(folder.name, entries)}
    return sum(math.prod(entry.shape) for entry in entries.values())


_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "image_encoder")


def _variants(stem: str) -> tuple[tuple[str, str], ...]:
    """File and index, full precision first."""
    return (
        (f"{stem}.safetensors", f"{stem}.safetensors.index.json"),
        (f"{stem}.fp16.safetensors", f"{stem}.safetensors.index.fp16.json"),
    )


def _shards(index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"{index} has no weight_map from keys to files")
    names = sorted(set(shards.values()))
    if foreign := [name for name in names if Path(name).name != name or Path(name).suffix != ".safetensors"]:
        raise ValueError(f"{index} names {foreign[:3]}, expected .safetensors files in the same folder")
    return [index.parent / name for name in names]


def _absent(sources: Sequence[Source]) -> list[Source]:
    return [source for source in sources if source.or_identity][:1]
