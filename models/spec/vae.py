"""What an autoencoder is: plain data, read from the ``config.json`` beside its weights. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.spec.config import known, read_config, reading, require

_SILENT = {"block_out_channels": (64,), "layers_per_block": 1}
"""What the published classes assume where a config says nothing."""


@dataclass(frozen=True)
class AutoencoderSpec:
    """What every autoencoder tells about its pictures and latents.

    A latent z of the autoencoder is ``(z - shift_factor) * scaling_factor`` for the denoiser.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    force_upcast: bool = True
    """Whether the weights overflow in half precision, so that fp16 is refused."""


@dataclass(frozen=True)
class ConvAutoencoderSpec(AutoencoderSpec):
    """The convolutional encoder and decoder of latent diffusion (Rombach et al. 2022, appendix G)."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    attention_levels: tuple[int, ...] = ()
    """Levels with attention behind every residual block, 0 the one of the pictures' own size."""
    mid_block_add_attention: bool = True

    @property
    def downscale(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class VAESpec(ConvAutoencoderSpec):
    """A KL autoencoder (Rombach et al. 2022, section 3.1), in the terms of a published ``vae/config.json``."""

    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> VAESpec:
        """Read a published ``AutoencoderKL`` config.

        Latent channels, scale and downscaling may be asked of an ``AutoencoderKLTemporalDecoder`` config too.

        Raises:
            ValueError: the config asks for something this autoencoder is not.
        """
        require(config, act_fn="silu", latents_mean=None, latents_std=None)
        return cls(**_conv_fields(cls, config))


@dataclass(frozen=True)
class TemporalVAESpec(ConvAutoencoderSpec):
    """A KL autoencoder whose decoder sees the neighbouring frames (Blattmann et al. 2023, section 4.1)."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TemporalVAESpec:
        """Read a published ``AutoencoderKLTemporalDecoder`` config.

        Raises:
            ValueError: the config asks for something this autoencoder is not.
        """
        require(
            config,
            _class_name="AutoencoderKLTemporalDecoder",
            act_fn="silu",
            latents_mean=None,
            latents_std=None,
            shift_factor=None,
            norm_num_groups=32,
            mid_block_add_attention=True,
            use_quant_conv=True,
            use_post_quant_conv=False,
        )
        return cls(**_conv_fields(cls, config))


@dataclass(frozen=True)
class VQSpec(ConvAutoencoderSpec):
    """A vector-quantised autoencoder (Rombach et al. 2022, appendix G). Its latents have ``vq_embed_dim`` channels.

    The published class assumes the KL scale 0.18215 where a config is silent. Latent diffusion trained on unscaled
    codes, and its configs are silent, so that here silence means 1.
    """

    latent_channels: int = 3
    scaling_factor: float = 1.0
    force_upcast: bool = False
    num_vq_embeddings: int = 256
    """Entries of the codebook."""
    vq_embed_dim: int = 3

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> VQSpec:
        """Read a published ``VQModel`` config.

        Raises:
            ValueError: the config asks for something this autoencoder is not.
        """
        require(config, _class_name="VQModel", act_fn="silu", norm_type="group", shift_factor=None)
        given = _conv_fields(cls, config)
        if given.get("vq_embed_dim") is None:
            given["vq_embed_dim"] = given.get("latent_channels", cls.latent_channels)
        return cls(**given)


@dataclass(frozen=True)
class TinyAutoencoderSpec(AutoencoderSpec):
    """A distilled autoencoder of plain convolutions (TAESD), which works in the denoiser's scale."""

    scaling_factor: float = 1.0
    force_upcast: bool = False
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    """Residual blocks at each level, from the pictures down."""
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    """Residual blocks at each level, from the latents up."""

    @property
    def downscale(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.num_decoder_blocks) - 1)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TinyAutoencoderSpec:
        """Read a published ``AutoencoderTiny`` config.

        Raises:
            ValueError: the config asks for something this autoencoder is not.
        """
        require(config, _class_name="AutoencoderTiny", act_fn="relu", upsample_fn="nearest")
        require(config, upsampling_scaling_factor=2)
        spec = cls(**_scaled_fields(cls, config))
        levels = len(spec.num_encoder_blocks)
        for name in ("encoder_block_out_channels", "decoder_block_out_channels", "num_decoder_blocks"):
            if len(getattr(spec, name)) != levels:
                raise ValueError(
                    f"config {name}={getattr(spec, name)} must have {levels} levels, as num_encoder_blocks has"
                )
        for name in ("encoder_block_out_channels", "decoder_block_out_channels"):
            if len(set(getattr(spec, name))) != 1:
                raise ValueError(f"config {name}={getattr(spec, name)} must be the same width at every level")
        return spec


def read_vae_spec(folder: Path, part: str = "vae") -> VAESpec:
    """The spec of ``folder/part``."""
    path = folder / part / "config.json"
    with reading(path):
        return VAESpec.from_config(read_config(path))


def read_part_spec(folder: Path, part: str) -> VAESpec | VQSpec:
    """The spec of the autoencoder of pictures in ``folder/part``, by the name of the part: ``vae`` or ``vqvae``."""
    return read_vae_spec(folder, part) if part == "vae" else read_vq_spec(folder, part)


def read_temporal_vae_spec(folder: Path, part: str = "vae") -> TemporalVAESpec:
    """The spec of ``folder/part``."""
    path = folder / part / "config.json"
    with reading(path):
        return TemporalVAESpec.from_config(read_config(path))


def read_vq_spec(folder: Path, part: str = "vqvae") -> VQSpec:
    """The spec of ``folder/part``."""
    path = folder / part / "config.json"
    with reading(path):
        return VQSpec.from_config(read_config(path))


def read_tiny_spec(folder: Path) -> TinyAutoencoderSpec:
    """The spec in ``folder`` itself: these autoencoders are published alone."""
    path = folder / "config.json"
    with reading(path):
        return TinyAutoencoderSpec.from_config(read_config(path))


def _scaled_fields(cls: type, config: dict[str, Any]) -> dict[str, Any]:
    given = known(cls, config)
    if given.get("shift_factor", 0.0) is None:
        given["shift_factor"] = 0.0
    return given


def _conv_fields(cls: type, config: dict[str, Any]) -> dict[str, Any]:
    given = {**_SILENT, **_scaled_fields(cls, config)}
    levels = len(given["block_out_channels"])
    down = _levels_with_attention(config, "down_block_types", "AttnDownEncoderBlock2D", "DownEncoderBlock2D", levels)
    if "up_block_types" in config:
        up = _levels_with_attention(config, "up_block_types", "AttnUpDecoderBlock2D", "UpDecoderBlock2D", levels)
        if tuple(levels - 1 - level for level in reversed(up)) != down:
            raise ValueError(f"config up_block_types={config['up_block_types']} must mirror down_block_types")
    return {**given, "attention_levels": down}


def _levels_with_attention(
    config: dict[str, Any], key: str, attentive: str, plain: str, levels: int
) -> tuple[int, ...]:
    types = config.get(key, [plain] * levels)
    if unknown := set(types) - {attentive, plain}:
        raise ValueError(f"config {key} holds {sorted(unknown)}, expected {attentive!r} or {plain!r}")
    if len(types) != levels:
        raise ValueError(f"config {key} has {len(types)} levels, but block_out_channels has {levels}")
    return tuple(level for level, name in enumerate(types) if name == attentive)
