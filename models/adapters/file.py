"""Files of low-rank adapters (Hu et al. 2021, section 4.1), in the namings of kohya's scripts, diffusers and peft.

An adapter changes a weight by  delta W = scale up down,  up [out, r] and down [r, in], scale = alpha / r.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.tensors import FLOATS, TensorFile, open_tensors
from models.spec.config import read_json, reading

DENOISER = "denoiser"
"""The part that a file calls ``unet`` or ``transformer``."""
_PARTS = (
    (r"lora_(unet|transformer)_", DENOISER),
    (r"lora_te1?_", "text_encoder"),
    (r"lora_te2_", "text_encoder_2"),
    (r"lora_te3_", "text_encoder_3"),
    (r"(base_model\.model\.)?(unet|transformer|diffusion_model|model\.diffusion_model)\.", DENOISER),
    (r"(base_model\.model\.)?text_encoder\.", "text_encoder"),
    (r"(base_model\.model\.)?text_encoder_2\.", "text_encoder_2"),
    (r"(base_model\.model\.)?text_encoder_3\.", "text_encoder_3"),
    (r"(base_model\.model\.)?(?=text_model\.|encoder\.)", "text_encoder"),
    (r"(base_model\.model\.)?", DENOISER),
)
_HALVES = (
    (re.compile(r"(.+)\.lora_(down|up)\.weight"), r"\1"),
    (re.compile(r"(.+)\.lora_(A|B)(?:\.\w+)?\.weight"), r"\1"),
    (re.compile(r"(.+)\.lora(?:_linear_layer)?\.(down|up)\.weight"), r"\1"),
    (re.compile(r"(.+?)(?:\.processor)?\.to_out_lora\.(down|up)\.weight"), r"\1.to_out.0"),
    (re.compile(r"(.+?)(?:\.processor)?\.(?P<layer>to_[qkv])_lora\.(down|up)\.weight"), r"\1.\g<layer>"),
)
_ALPHA = re.compile(r"(.+)\.alpha")
_DORA = ("dora_scale", "lora_magnitude_vector")
_OTHERS = ("hada_", "lokr_", "lora_mid", "oft_", "boft_", "ia3_", "diff", "glora", "lora_embedding", ".bias")


@dataclass(frozen=True)
class Layer:
    """What an adapter does to one layer."""

    part: str
    """``DENOISER`` or the folder of a text encoder."""
    name: str
    """Of the layer, as the file calls it, without what names the part."""
    down: str
    """Key of [r, in, ...]."""
    up: str
    """Key of [out, r, ...]."""
    scale: float
    """alpha / r, and 1 where the file states no alpha."""


class AdapterFile:
    """One adapter, open for reading."""

    def __init__(self, file: TensorFile, sha256: str, layers: tuple[Layer, ...]) -> None:
        self.path = file.path
        self.sha256 = sha256
        """Of all that the adapter's effect depends on."""
        self.layers = layers
        self._file = file

    @property
    def parts(self) -> frozenset[str]:
        """The parts that it changes."""
        return frozenset(layer.part for layer in self.layers)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes of its matrices, as safetensors names them."""
        keys = (key for layer in self.layers for key in (layer.down, layer.up))
        return tuple(sorted({self._file.entries[key].dtype for key in keys}))

    def parameters(self, layer: Layer) -> int:
        """Numbers that are stored for a layer."""
        return sum(math.prod(self._file.entries[key].shape) for key in (layer.down, layer.up))

    def shape(self, layer: Layer) -> tuple[int, ...]:
        """Of the change to a layer's weight."""
        down, up = (self._file.entries[key].shape for key in (layer.down, layer.up))
        return (up[0], *down[1:])

    def delta(self, layer: Layer) -> Tensor:
        """The change to a layer's weight, fp32."""
        down, up = (self._file.read(key).float() for key in (layer.down, layer.up))
        return (up.flatten(1) @ down.flatten(1)).mul_(layer.scale).view(self.shape(layer))

    def check_values(self, layer: Layer) -> None:
        """Raise ValueError when the values of a layer cannot be read, or are not all finite."""
        for key in (layer.down, layer.up):
            if not bool(torch.isfinite(self._file.read(key).float()).all()):
                raise ValueError(f"{self.path}: {key} holds values that are not finite")


def read_adapter(path: Path) -> AdapterFile:
    """Open an adapter; its tensors are read when they are needed.

    Args:
        path: a safetensors file. An ``adapter_config.json`` beside an ``adapter_model.safetensors`` belongs to it, as
            peft writes them.

    Raises:
        ValueError: the file is missing or damaged, an adapter of another kind (DoRA, LoHa, LoKr and others), or its
            layers make no sense.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is not a safetensors file; adapters in other formats are not read")
    file = open_tensors(path)
    for key, entry in file.entries.items():
        _refuse_other_kinds(path, key)
        if entry.dtype not in FLOATS:
            raise ValueError(f"{path}: {key} is {entry.dtype}, expected one of {', '.join(FLOATS)}")
    config = path.with_name("adapter_config.json") if path.name == "adapter_model.safetensors" else None
    settings = _settings(file, config)
    layers = tuple(_layers(file, settings))
    if not layers:
        raise ValueError(f"{path} holds no adapter")
    return AdapterFile(file, _digest(path, config), layers)


@dataclass(frozen=True)
class _Settings:
    """What peft states beside the tensors, by part; nothing where it states nothing."""

    by_part: Mapping[str, Mapping[str, Any]]

    def scale(self, part: str, name: str, rank: int) -> float:
        """Of a layer whose tensors come without an alpha."""
        stated = self.by_part.get(part) or self.by_part.get("", {})
        if "lora_alpha" not in stated:
            return 1.0
        patterns = stated.get("alpha_pattern") or {}
        alpha = next((a for key, a in patterns.items() if f".{name}".endswith(f".{key}")), stated["lora_alpha"])
        return float(alpha) / (math.sqrt(rank) if stated.get("use_rslora") else rank)


def _settings(file: TensorFile, config: Path | None) -> _Settings:
    stated: dict[str, dict[str, Any]] = {}
    if config is not None and config.exists():
        stated[""] = read_json(config)
    elif metadata := file.metadata.get("lora_adapter_metadata"):
        with reading(file.path):
            for key, value in dict(json.loads(metadata)).items():
                part, _, option = key.rpartition(".")
                part = DENOISER if part in ("unet", "transformer") else part
                stated.setdefault(part, {})[option] = value
    for options in stated.values():
        if options.get("use_dora"):
            raise ValueError(f"{file.path} is a DoRA adapter, which is not supported; a plain LoRA is")
        patterns = options.get("alpha_pattern") or {}
        if not isinstance(patterns, dict) or not all(re.fullmatch(r"[\w.]+", key) for key in patterns):
            raise ValueError(f"{file.path}: alpha_pattern {patterns!r} is not supported, expected names of layers")
    return _Settings(stated)


def _layers(file: TensorFile, settings: _Settings) -> list[Layer]:
    halves: dict[str, dict[str, str]] = {}
    alphas: dict[str, str] = {}
    for key in file.entries:
        if match := _ALPHA.fullmatch(key):
            alphas[match[1]] = key
        else:
            layer, half = _half(file.path, key)
            halves.setdefault(layer, {})[half] = key
    if lonely := sorted(alphas.keys() - halves.keys()):
        raise ValueError(f"{file.path}: {lonely[0]} has an alpha and nothing else")
    return [_layer(file, settings, name, found, alphas.get(name)) for name, found in sorted(halves.items())]


def _half(path: Path, key: str) -> tuple[str, str]:
    """The layer that a key belongs to, and which of its matrices it is."""
    for pattern, layer in _HALVES:
        if match := pattern.fullmatch(key):
            return match.expand(layer), "down" if {"down", "A"} & set(match.groups()) else "up"
    raise ValueError(f"{path}: {key} is of no naming known here; those of kohya, diffusers and peft are")


def _layer(file: TensorFile, settings: _Settings, written: str, found: Mapping[str, str], alpha: str | None) -> Layer:
    if missing := {"down", "up"} - found.keys():
        raise ValueError(f"{file.path}: {written} lacks its {missing.pop()} matrix")
    down, up = (file.entries[found[half]].shape for half in ("down", "up"))
    if len(down) < 2 or len(up) < 2 or down[0] != up[1] or not down[0] or math.prod(up) != up[0] * up[1]:
        raise ValueError(
            f"{file.path}: {written} has matrices {list(up)} and {list(down)}, expected [out, r] and [r, in]"
        )
    part, name = _part_of(written)
    scale = settings.scale(part, name, down[0])
    if alpha is not None:
        if math.prod(file.entries[alpha].shape) != 1:
            raise ValueError(f"{file.path}: {alpha} has shape {list(file.entries[alpha].shape)}, expected one number")
        scale = float(file.read(alpha)) / down[0]
    if not math.isfinite(scale):
        raise ValueError(f"{file.path}: {written} has the scale {scale}")
    return Layer(part, name, found["down"], found["up"], scale)


def _part_of(written: str) -> tuple[str, str]:
    for prefix, part in _PARTS:
        if match := re.match(prefix, written):
            return part, written[match.end() :]
    raise ValueError(f"{written} names no layer. This is a bug.")


def _refuse_other_kinds(path: Path, key: str) -> None:
    if any(mark in key for mark in _DORA):
        raise ValueError(f"{path} is a DoRA adapter ({key}), which is not supported; a plain LoRA is")
    if any(mark in key for mark in _OTHERS):
        raise ValueError(f"{path}: {key} is of an adapter that is no plain LoRA, which is not supported")


def _digest(path: Path, config: Path | None) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    if config is not None and config.exists():
        digest.update(config.read_bytes())
    return digest.hexdigest()
