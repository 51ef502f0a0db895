"""What a denoising UNet is: plain data, read from a published ``unet/config.json``. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.spec.config import per_level, read_json, require

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
        require(config, **_SDXL_SHAPED)
        channels = tuple(config["block_out_channels"])
        depth = per_level(config.get("transformer_layers_per_block", 1), len(channels))
        # The published key is called attention_head_dim but holds the number of heads.
        heads = per_level(config.get("num_attention_heads") or config.get("attention_head_dim", 8), len(channels))
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


def read_unet_spec(folder: Path) -> UNetSpec:
    """The spec of ``folder/unet``."""
    return UNetSpec.from_config(read_json(folder / "unet" / "config.json"))


def _attention_levels(config: dict[str, Any], key: str, attentive: str, plain: str) -> list[bool]:
    if unknown := set(config[key]) - {attentive, plain}:
        raise ValueError(f"config {key} holds {sorted(unknown)}, expected {attentive!r} or {plain!r}")
    return [name == attentive for name in config[key]]
