"""What a multimodal diffusion transformer is: plain data, read from a published ``transformer/config.json``. No torch
here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.spec.config import read_config, reading, require

PATCH = 2
"""Latents per token along one side. Every published network of this kind has 2."""

_SIZES = (
    "attention_head_dim",
    "caption_projection_dim",
    "in_channels",
    "joint_attention_dim",
    "num_attention_heads",
    "num_layers",
    "pooled_projection_dim",
    "pos_embed_max_size",
    "sample_size",
)
"""Options that a config must give, each a positive integer."""

_OPTIONAL = ("out_channels", "patch_size", "dual_attention_layers", "qk_norm")


@dataclass(frozen=True)
class MMDiTSpec:
    """The transformer of SD3 and SD3.5 (Esser et al. 2024, section 4), read from a published
    ``transformer/config.json``."""

    in_channels: int
    """Latent channels of the noisy picture and of what an editing network has concatenated behind it."""
    out_channels: int
    depth: int
    """Number of joint blocks."""
    heads: int
    head_dim: int
    context_dim: int
    """Width of a text token as the encoders leave it."""
    vector_dim: int
    """Width of the pooled text."""
    position_size: int
    """Side of the position table in tokens: the largest picture, whatever size it was trained at."""
    native_size: int
    """Side in tokens of the picture it was trained at, which sets the unit of the positions."""
    dual_attention_layers: tuple[int, ...] = ()
    """Blocks with a second attention, of the picture alone (SD3.5-medium)."""
    qk_norm: bool = False
    """Whether queries and keys pass an RMS norm per head (SD3.5)."""

    @property
    def width(self) -> int:
        """Channels of a token inside the network."""
        return self.heads * self.head_dim

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MMDiTSpec:
        """Read a published config.

        Raises:
            ValueError: the config lacks an option, holds one that is not known here, or asks for something this
                network is not.
        """
        # Keys with an underscore say who wrote the file.
        if unknown := {key for key in config if not key.startswith("_")} - {*_SIZES, *_OPTIONAL}:
            raise ValueError(f"config holds {sorted(unknown)}, which this network does not know")
        require(config, patch_size=PATCH)
        sizes = {key: _size(config, key) for key in _SIZES}
        qk_norm = config.get("qk_norm")
        if qk_norm not in (None, "rms_norm"):
            raise ValueError(f"config qk_norm={qk_norm!r} is not supported, expected None or 'rms_norm'")
        width = sizes["num_attention_heads"] * sizes["attention_head_dim"]
        require(config, caption_projection_dim=width)
        if width % 4:
            raise ValueError(f"config num_attention_heads * attention_head_dim = {width}, expected a multiple of 4")
        return cls(
            in_channels=sizes["in_channels"],
            out_channels=sizes["in_channels"] if config.get("out_channels") is None else _size(config, "out_channels"),
            depth=sizes["num_layers"],
            heads=sizes["num_attention_heads"],
            head_dim=sizes["attention_head_dim"],
            context_dim=sizes["joint_attention_dim"],
            vector_dim=sizes["pooled_projection_dim"],
            position_size=sizes["pos_embed_max_size"],
            native_size=sizes["sample_size"] // PATCH,
            dual_attention_layers=_layers(config, sizes["num_layers"]),
            qk_norm=qk_norm == "rms_norm",
        )


def read_mmdit_spec(folder: Path) -> MMDiTSpec:
    """The spec of ``folder/transformer``."""
    path = folder / "transformer" / "config.json"
    with reading(path):
        return MMDiTSpec.from_config(read_config(path))


def _size(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"config {key}={value!r}, expected a positive integer")
    return value


def _layers(config: dict[str, Any], depth: int) -> tuple[int, ...]:
    layers = tuple(config.get("dual_attention_layers") or ())
    if outside := [layer for layer in layers if layer not in range(depth)]:
        raise ValueError(f"config dual_attention_layers holds {outside}, expected 0 to {depth - 1}")
    return layers
