"""What a denoising UNet is: plain data, read from a published ``unet/config.json``. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.spec.config import per_level, read_config, reading, require

_COMMON = {
    "dropout": 0.0,
    "act_fn": "silu",
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "dual_cross_attention": False,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "mid_block_scale_factor": 1,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "reverse_transformer_layers_per_block": None,
    "downsample_padding": 1,
    "attention_type": "default",
    "cross_attention_norm": None,
}
"""Options with one supported value. Any other would change the network, so it is refused and never skipped.

``upcast_attention`` is missing on purpose: attention accumulates in fp32 here whatever the config says.
"""
_VIDEO = {
    **_COMMON,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "use_linear_projection": True,
    "only_cross_attention": False,
    "addition_embed_type": "text_time",
    "num_class_embeds": None,
}
"""What the published video UNet fixes: its config does not carry these options."""
_PIXELS = {
    **{key: value for key, value in _COMMON.items() if key not in ("flip_sin_to_cos", "freq_shift")},
    "mid_block_type": "UNetMidBlock2D",
    "add_attention": True,
    "attn_norm_num_groups": None,
    "addition_embed_type": None,
}
"""The same of a UNet with attention over pixels alone."""
_PIXELS_CLASS = "UNet2DModel"
_CLASS_NAMES = {False: "UNet2DConditionModel", True: "UNetSpatioTemporalConditionModel"}
_BLOCKS = {
    False: ("DownBlock2D", "CrossAttnDownBlock2D"),
    True: ("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"),
}
"""The published names of blocks without and with attention on the way down, by whether the network is temporal."""
_PIXELS_BLOCKS = {
    "conv": ("DownBlock2D", "AttnDownBlock2D"),
    "resnet": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
}
"""The same where attention is over pixels, by what changes the resolution."""


@dataclass(frozen=True)
class UNetSpec:
    """The denoising UNet of latent diffusion, Stable Diffusion, SDXL, Stable Video Diffusion and Video LDM (Rombach et
    al. 2022, appendix E; Podell et al. 2023, table 1; Blattmann et al. 2023), in the terms of a published
    ``unet/config.json``. Tuples hold one entry a level, the highest resolution first."""

    in_channels: int
    """The noisy channels and the conditioning channels behind them."""
    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    transformer_depth: tuple[int, ...]
    """Transformer blocks of a level; 0 for a level without attention."""
    mid_depth: int
    """Transformer blocks of the middle block, which has attention in every published network."""
    heads: tuple[int, ...]
    context_dim: int
    """Length of a token that transformers attend to. 0 for a network without a context: in the place of transformers it
    has attention over pixels alone, and depths are 0 or 1."""
    vector_dim: int = 0
    """Length of the vector that joins the time embedding; 1 for a class index, 0 when the network takes none."""
    time_id_dim: int = 0
    """Fourier features per number inside that vector."""
    num_class_embeds: int = 0
    """Classes (noise levels, for the x4 upscaler) whose index is the vector; 0 when the vector is not an index."""
    linear_projection: bool = True
    """Whether transformers project by a linear layer over tokens, and not by a 1x1 convolution."""
    only_cross_attention: tuple[bool, ...] = ()
    """Levels whose first attention reads the context too, and not the pixels; empty for none."""
    temporal: bool = False
    """Whether there are temporal layers: the network then takes ``[B, T, C, H, W]``."""
    resnet_resampling: bool = False
    """Whether residual blocks change the resolution, and not convolutions. Sides must then be multiples of
    2^(levels - 1)."""
    sines_first: bool = False
    """Whether sines stand before cosines in the features of the time."""
    freq_shift: int = 0
    """Of the same features; see :func:`models.blocks.fourier_features`."""
    norm_num_groups: int = 32
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        last = len(self.block_out_channels) - 1
        for level, (width, heads) in enumerate(zip(self.block_out_channels, self.heads, strict=True)):
            if (self.transformer_depth[level] or level == last) and width % heads:
                raise ValueError(f"heads={heads} of level {level} do not divide its {width} channels")

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> UNetSpec:
        """Read a published config of ``UNet2DConditionModel``, ``UNetSpatioTemporalConditionModel`` or ``UNet2DModel``.

        Raises:
            ValueError: the config asks for something this network is not.
        """
        if config.get("_class_name") == _PIXELS_CLASS:
            return cls(**_pixels_fields(config))
        temporal = any("SpatioTemporal" in name for name in config["down_block_types"])
        require(config, _class_name=_CLASS_NAMES[temporal], **(_VIDEO if temporal else _COMMON))
        channels = tuple(config["block_out_channels"])
        levels = len(channels)
        depth = per_level(config.get("transformer_layers_per_block", 1), levels)
        attentive = _attentive_levels(config, *_BLOCKS[temporal], levels)
        vector_dim, time_id_dim, classes = _vector(config, temporal)
        only_cross = config.get("only_cross_attention") or False
        return cls(
            in_channels=config["in_channels"],
            out_channels=config["out_channels"],
            block_out_channels=channels,
            layers_per_block=_same_at_every_level(config, "layers_per_block", 2),
            transformer_depth=tuple(d if on else 0 for d, on in zip(depth, attentive, strict=True)),
            mid_depth=depth[-1],
            # Image configs give the number of heads under the name attention_head_dim.
            heads=per_level(config.get("num_attention_heads") or config.get("attention_head_dim", 8), levels),
            context_dim=_same_at_every_level(config, "cross_attention_dim", 1280),
            vector_dim=vector_dim,
            time_id_dim=time_id_dim,
            num_class_embeds=classes,
            linear_projection=temporal or bool(config.get("use_linear_projection", False)),
            only_cross_attention=tuple(bool(on) for on in per_level(only_cross, levels)) if only_cross else (),
            temporal=temporal,
            norm_num_groups=int(config.get("norm_num_groups", 32)),
            norm_eps=float(config.get("norm_eps", 1e-5)),
        )

    def down_eps(self, level: int) -> float:
        """Epsilon of the GroupNorms in the residual blocks of a level on the way down.

        The published video UNet was written with 1e-6 in blocks with attention and on the way up, 1e-5 elsewhere.
        """
        return 1e-6 if self.temporal and self.transformer_depth[level] else self.norm_eps

    @property
    def up_eps(self) -> float:
        """Epsilon of the GroupNorms in the residual blocks on the way up; see :meth:`down_eps`."""
        return 1e-6 if self.temporal else self.norm_eps


def read_unet_spec(folder: Path) -> UNetSpec:
    """The spec of ``folder/unet``."""
    path = folder / "unet" / "config.json"
    with reading(path):
        return UNetSpec.from_config(read_config(path))


def _pixels_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a ``UNet2DModel``, as latent diffusion has it for super-resolution, semantic maps and inpainting
    (Rombach et al. 2022, sections 4.3.2, 4.4 and 4.5)."""
    resampling = config.get("downsample_type", "conv")
    require({"upsample_type": "conv", **config}, **_PIXELS, upsample_type=resampling)
    if resampling not in _PIXELS_BLOCKS:
        raise ValueError(f"config downsample_type={resampling!r} is not supported, expected 'conv' or 'resnet'")
    channels = tuple(config["block_out_channels"])
    attentive = _attentive_levels(config, *_PIXELS_BLOCKS[resampling], len(channels))
    vector_dim, _, classes = _vector(config, temporal=False)
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "block_out_channels": channels,
        "layers_per_block": _same_at_every_level(config, "layers_per_block", 2),
        "transformer_depth": tuple(int(on) for on in attentive),
        "mid_depth": 1,
        "heads": _pixels_heads(config, channels, [*attentive[:-1], True]),
        "context_dim": 0,
        "vector_dim": vector_dim,
        "num_class_embeds": classes,
        "resnet_resampling": resampling == "resnet",
        "sines_first": not config.get("flip_sin_to_cos", True),
        "freq_shift": int(config.get("freq_shift", 0)),
        "norm_num_groups": int(config.get("norm_num_groups", 32)),
        "norm_eps": float(config.get("norm_eps", 1e-5)),
    }


def _pixels_heads(config: dict[str, Any], channels: Sequence[int], attentive: Sequence[bool]) -> tuple[int, ...]:
    """By level. In this class ``attention_head_dim`` is what its name says, and None for one head.

    ``num_attention_heads``, which the published class has not, may be given in its place: latent diffusion's network
    for inpainting has as many heads at every level.
    """
    if count := config.get("num_attention_heads"):
        return per_level(count, len(channels))
    size = config.get("attention_head_dim", 8)
    if size is None:
        return (1,) * len(channels)
    for level, (width, on) in enumerate(zip(channels, attentive, strict=True)):
        if on and (size < 1 or width % size):
            raise ValueError(f"config attention_head_dim={size} does not divide the {width} channels of level {level}")
    return tuple(max(width // size, 1) for width in channels)


def _attentive_levels(config: dict[str, Any], plain: str, attentive: str, levels: int) -> list[bool]:
    """By level whether it has attention; the way up must mirror the way down. The names are those of the way down."""
    found = {}
    for key, way in (("down_block_types", "Down"), ("up_block_types", "Up")):
        names = [name.replace("Down", way) for name in (plain, attentive)]
        if unknown := set(config[key]) - set(names):
            raise ValueError(f"config {key} holds {sorted(unknown)}, expected {names[1]!r} or {names[0]!r}")
        if len(config[key]) != levels:
            raise ValueError(f"config {key} holds {len(config[key])} blocks, expected {levels}")
        found[key] = [name == names[1] for name in config[key]]
    if found["up_block_types"][::-1] != found["down_block_types"]:
        raise ValueError(f"up_block_types {config['up_block_types']} do not mirror {config['down_block_types']}")
    return found["down_block_types"]


def _vector(config: dict[str, Any], temporal: bool) -> tuple[int, int, int]:
    """Length of the vector, Fourier features per number in it, number of classes."""
    kind = config.get("addition_embed_type", "text_time" if temporal else None)
    classes = int(config.get("num_class_embeds") or 0)
    if kind is None:
        return (1 if classes else 0), 0, classes
    if kind != "text_time":
        raise ValueError(f"config addition_embed_type={kind!r} is not supported, expected 'text_time' or None")
    if classes:
        raise ValueError(f"config num_class_embeds={classes} is not supported together with addition_embed_type")
    return int(config["projection_class_embeddings_input_dim"]), int(config["addition_time_embed_dim"]), 0


def _same_at_every_level(config: dict[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    numbers = set(value) if isinstance(value, Sequence) else {value}
    if len(numbers) != 1:
        raise ValueError(f"config {key}={value!r} is not supported, expected one number for all levels")
    return int(numbers.pop())
