"""Published configs of autoencoders to specs: what is read, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, AutoencoderTiny, VQModel

from models.spec.vae import (
    TemporalVAESpec,
    TinyAutoencoderSpec,
    VAESpec,
    VQSpec,
    read_part_spec,
    read_temporal_vae_spec,
    read_tiny_spec,
    read_vae_spec,
    read_vq_spec,
)

KL = {"_class_name": "AutoencoderKL", "block_out_channels": [8, 16, 16], "layers_per_block": 2, "norm_num_groups": 4}
TEMPORAL = {"_class_name": "AutoencoderKLTemporalDecoder", "block_out_channels": [32, 64]}
VECTORS = {"_class_name": "VQModel", "block_out_channels": [8, 16], "num_vq_embeddings": 64}
TINY = {"_class_name": "AutoencoderTiny", "num_encoder_blocks": [1, 2, 2, 2], "latent_channels": 16}
DOWN, UP = ["DownEncoderBlock2D"] * 3, ["UpDecoderBlock2D"] * 3
ATTN_DOWN, ATTN_UP = "AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"


def test_a_kl_config_is_read() -> None:
    spec = VAESpec.from_config({**KL, "scaling_factor": 0.13025, "shift_factor": None, "sample_size": 64})
    assert spec == VAESpec(block_out_channels=(8, 16, 16), norm_num_groups=4, scaling_factor=0.13025)
    assert (spec.downscale, spec.shift_factor, spec.force_upcast) == (4, 0.0, True)


def test_the_config_of_sd3_is_read() -> None:
    config = {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, "force_upcast": False}
    spec = VAESpec.from_config({**KL, **config, "use_quant_conv": False, "use_post_quant_conv": False})
    assert (spec.latent_channels, spec.scaling_factor, spec.shift_factor) == (16, 1.5305, 0.0609)
    assert not (spec.use_quant_conv or spec.use_post_quant_conv or spec.force_upcast)


def test_attention_by_level_is_read() -> None:
    spec = VAESpec.from_config({**KL, "down_block_types": [*DOWN[:2], ATTN_DOWN], "up_block_types": [ATTN_UP, *UP[:2]]})
    assert spec.attention_levels == (2,)
    assert VAESpec.from_config({**KL, "down_block_types": DOWN, "up_block_types": UP}).attention_levels == ()


def test_a_temporal_config_is_read() -> None:
    spec = TemporalVAESpec.from_config({**TEMPORAL, "layers_per_block": 2, "latent_channels": 3})
    assert spec == TemporalVAESpec(block_out_channels=(32, 64), latent_channels=3)
    # What a request needs to know of its latents can be asked without knowing the class.
    assert VAESpec.from_config(TEMPORAL).downscale == spec.downscale == 2


def test_a_vq_config_is_read() -> None:
    """Silence about the scale means 1, where the published class would say 0.18215."""
    spec = VQSpec.from_config({**VECTORS, "latent_channels": 4})
    assert spec == VQSpec(
        block_out_channels=(8, 16), layers_per_block=1, num_vq_embeddings=64, latent_channels=4, vq_embed_dim=4
    )
    assert spec.scaling_factor == 1.0 and not spec.force_upcast
    assert VQSpec.from_config({**VECTORS, "scaling_factor": 0.5, "vq_embed_dim": 2}).scaling_factor == 0.5
    assert VQSpec.from_config({**VECTORS, "vq_embed_dim": 2}).vq_embed_dim == 2


def test_a_tiny_config_is_read() -> None:
    spec = TinyAutoencoderSpec.from_config(TINY)
    assert spec == TinyAutoencoderSpec(latent_channels=16, num_encoder_blocks=(1, 2, 2, 2))
    assert (spec.downscale, spec.scaling_factor, spec.shift_factor) == (8, 1.0, 0.0)


@pytest.mark.parametrize(
    ("read", "published"),
    [
        (VAESpec.from_config, AutoencoderKL),
        (TemporalVAESpec.from_config, AutoencoderKLTemporalDecoder),
        (VQSpec.from_config, VQModel),
        (TinyAutoencoderSpec.from_config, AutoencoderTiny),
    ],
)
def test_a_silent_config_means_what_the_published_class_assumes(
    read: Callable[[dict[str, Any]], object], published: type
) -> None:
    config = dict(published().config)
    if published is VQModel:
        config["scaling_factor"] = 1.0  # the one exception, above
    assert read({}) == read(config)


KL_LEVELS = {"down_block_types": DOWN, "up_block_types": UP}
REFUSED: list[tuple[Callable[[dict[str, Any]], object], dict[str, Any], str, Any]] = [
    (VAESpec.from_config, KL, "act_fn", "relu"),
    (VAESpec.from_config, KL, "latents_mean", [0.0] * 4),
    (VAESpec.from_config, KL, "latents_std", [1.0] * 4),
    (VAESpec.from_config, KL, "down_block_types", ["DownBlock2D"] * 3),
    (VAESpec.from_config, KL, "down_block_types", DOWN[:2]),
    (VAESpec.from_config, KL_LEVELS | KL, "up_block_types", [ATTN_UP, *UP[:2]]),
    (TemporalVAESpec.from_config, TEMPORAL, "_class_name", "AutoencoderKL"),
    (TemporalVAESpec.from_config, TEMPORAL, "norm_num_groups", 16),
    (TemporalVAESpec.from_config, TEMPORAL, "shift_factor", 0.1),
    (TemporalVAESpec.from_config, TEMPORAL, "use_post_quant_conv", True),
    (VQSpec.from_config, VECTORS, "_class_name", "AutoencoderKL"),
    (VQSpec.from_config, VECTORS, "norm_type", "spatial"),
    (TinyAutoencoderSpec.from_config, TINY, "_class_name", "AutoencoderKL"),
    (TinyAutoencoderSpec.from_config, TINY, "act_fn", "gelu"),
    (TinyAutoencoderSpec.from_config, TINY, "upsample_fn", "bilinear"),
    (TinyAutoencoderSpec.from_config, TINY, "upsampling_scaling_factor", 4),
    (TinyAutoencoderSpec.from_config, TINY, "num_decoder_blocks", [3, 3, 1]),
    (TinyAutoencoderSpec.from_config, TINY, "decoder_block_out_channels", [64, 64, 32, 32]),
]


@pytest.mark.parametrize(("read", "config", "key", "value"), REFUSED)
def test_a_config_is_refused_by_the_key(
    read: Callable[[dict[str, Any]], object], config: dict[str, Any], key: str, value: Any
) -> None:
    read(config)
    with pytest.raises(ValueError, match=key):
        read({**config, key: value})


def test_specs_are_read_from_where_they_are_published(tmp_path: Path) -> None:
    for part, config in {"vae": KL, "vqvae": VECTORS, "video": TEMPORAL, ".": TINY}.items():
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    assert read_vae_spec(tmp_path) == VAESpec.from_config(KL)
    assert read_vq_spec(tmp_path) == VQSpec.from_config(VECTORS)
    assert [read_part_spec(tmp_path, part) for part in ("vae", "vqvae")] == [
        read_vae_spec(tmp_path),
        read_vq_spec(tmp_path),
    ]
    assert read_temporal_vae_spec(tmp_path, "video") == TemporalVAESpec.from_config(TEMPORAL)
    assert read_tiny_spec(tmp_path) == TinyAutoencoderSpec.from_config(TINY)
    with pytest.raises(ValueError, match="_class_name"):
        read_temporal_vae_spec(tmp_path)
