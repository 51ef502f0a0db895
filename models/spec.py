"""What each network and each model is: plain data, read from the published configuration files. No torch here."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class VAESpec:
    """A KL autoencoder (Rombach et al. 2022, section 3.1), in the terms of a published ``vae/config.json``."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    force_upcast: bool = True

    @property
    def downscale(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> VAESpec:
        """Read a published config.

        Raises:
            ValueError: the config asks for something this autoencoder is not.
        """
        _require(config, act_fn="silu", latents_mean=None, latents_std=None, shift_factor=None)
        return cls(**_known(cls, config))


_SDXL_SHAPED = {
    "act_fn": "silu",
    "use_linear_projection": True,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "addition_embed_type": "text_time",
    "class_embed_type": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "dual_cross_attention": False,
    "only_cross_attention": False,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "encoder_hid_dim": None,
    "reverse_transformer_layers_per_block": None,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "attention_type": "default",
    "cross_attention_norm": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
}
"""Options with one supported value. Any other would change the network, so it is refused and never skipped."""


@dataclass(frozen=True)
class UNetSpec:
    """The denoising UNet of latent diffusion and SDXL (Podell et al. 2023, table 1), in the terms of a published
    ``unet/config.json``. A level without attention has depth 0."""

    in_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    transformer_depth: tuple[int, ...]
    heads: tuple[int, ...]
    context_dim: int
    vector_dim: int
    """Length of the pooled-text-and-sizes vector that joins the time embedding; 0 when the network has none."""
    time_id_dim: int
    """Fourier features per size number inside that vector."""
    norm_num_groups: int = 32
    norm_eps: float = 1e-5

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> UNetSpec:
        """Read a published SDXL-shaped config.

        Raises:
            ValueError: the config asks for something this network is not.
        """
        _require(config, **_SDXL_SHAPED)
        channels = tuple(config["block_out_channels"])
        depth = _per_level(config.get("transformer_layers_per_block", 1), len(channels))
        # The published key is called attention_head_dim but holds the number of heads.
        heads = _per_level(config.get("num_attention_heads") or config.get("attention_head_dim", 8), len(channels))
        has_attention = _attention_levels(config, "down_block_types", "CrossAttnDownBlock2D", "DownBlock2D")
        mirrored = _attention_levels(config, "up_block_types", "CrossAttnUpBlock2D", "UpBlock2D")
        if mirrored[::-1] != has_attention:
            raise ValueError(f"up_block_types {config['up_block_types']} do not mirror {config['down_block_types']}")
        if not has_attention[-1]:
            raise ValueError(f"down_block_types {config['down_block_types']} end without attention; not supported")
        return cls(
            in_channels=config["in_channels"],
            out_channels=config["out_channels"],
            block_out_channels=channels,
            layers_per_block=int(config.get("layers_per_block", 2)),
            transformer_depth=tuple(d if on else 0 for d, on in zip(depth, has_attention, strict=True)),
            heads=heads,
            context_dim=int(config["cross_attention_dim"]),
            vector_dim=int(config["projection_class_embeddings_input_dim"]),
            time_id_dim=int(config["addition_time_embed_dim"]),
            norm_num_groups=int(config.get("norm_num_groups", 32)),
            norm_eps=float(config.get("norm_eps", 1e-5)),
        )


@dataclass(frozen=True)
class ModelSpec:
    """What a model folder offers to a request: read from the published files, and from an optional ``darkroom.json``
    beside them with the defaults its authors recommend."""

    name: str
    folder: Path
    sizes: tuple[tuple[int, int], ...]
    """Width and height in pixels of every size the model was trained for, the native one first."""
    steps: int
    guidance: float
    solver: str
    scheduler_config: dict[str, Any]
    zeros_for_empty_prompt: bool = True
    """Whether an empty negative prompt is all zeros instead of an encoded empty text."""
    max_steps: int = 150
    max_guidance: float = 30.0

    @classmethod
    def read(cls, folder: Path) -> ModelSpec:
        """Read a diffusers folder.

        Raises:
            ValueError: not a folder of a system that is served here; the message says what was found.
        """
        index = _read_json(folder / "model_index.json")
        pipeline = index.get("_class_name")
        if pipeline != "StableDiffusionXLPipeline":
            raise ValueError(f"{folder}: pipeline {pipeline!r} is not served, expected 'StableDiffusionXLPipeline'")
        unet = _read_json(folder / "unet" / "config.json")
        vae = read_vae_spec(folder)
        scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
        native = int(unet["sample_size"]) * vae.downscale
        card = _read_json(folder / "darkroom.json") if (folder / "darkroom.json").exists() else {}
        return cls(
            name=folder.name,
            folder=folder,
            sizes=tuple((int(w), int(h)) for w, h in card.get("sizes", [(native, native)])),
            steps=int(card.get("steps", 30)),
            guidance=float(card.get("guidance", 5.0)),
            solver=card.get("solver", SOLVER_OF_SCHEDULER.get(scheduler["_class_name"], "euler")),
            scheduler_config=scheduler,
            zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
        )


SOLVER_OF_SCHEDULER = {
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpm++2m",
}
"""Our solver's name for the scheduler class that a published folder names."""


def read_unet_spec(folder: Path) -> UNetSpec:
    """The spec of ``folder/unet``."""
    return UNetSpec.from_config(_read_json(folder / "unet" / "config.json"))


def read_vae_spec(folder: Path) -> VAESpec:
    """The spec of ``folder/vae``."""
    return VAESpec.from_config(_read_json(folder / "vae" / "config.json"))


def find_models(folder: Path) -> dict[str, ModelSpec]:
    """Every model folder directly below ``folder``, by name."""
    return {path.parent.name: ModelSpec.read(path.parent) for path in sorted(folder.glob("*/model_index.json"))}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return content


def _known(cls: type, config: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in names}


def _per_level(value: int | list[int], levels: int) -> tuple[int, ...]:
    return (value,) * levels if isinstance(value, int) else tuple(value)


def _attention_levels(config: dict[str, Any], key: str, attentive: str, plain: str) -> list[bool]:
    if unknown := set(config[key]) - {attentive, plain}:
        raise ValueError(f"config {key} holds {sorted(unknown)}, expected {attentive!r} or {plain!r}")
    return [name == attentive for name in config[key]]


def _require(config: dict[str, Any], **expected: Any) -> None:
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ValueError(f"config {key}={config[key]!r} is not supported, expected {value!r}")
