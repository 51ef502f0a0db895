"""Published ``unet/config.json`` files to specs: what is read, and what is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.spec.unet import UNetSpec, read_unet_spec
from tests.support.published_unets import PUBLISHED
from tests.support.published_unets import SMALL_SDXL as UNET

PIXELS = {
    "_class_name": "UNet2DModel",
    "in_channels": 6,
    "out_channels": 3,
    "block_out_channels": [32, 48, 64],
    "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "attention_head_dim": 16,
    "layers_per_block": 1,
}
REFUSED_OF_PIXELS = {
    "center_input_sample": True,
    "time_embedding_type": "fourier",
    "resnet_time_scale_shift": "scale_shift",
    "downsample_padding": 0,
    "downsample_type": "resnet",  # and the way up another
    "upsample_type": "resnet",
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "add_attention": False,
    "attn_norm_num_groups": 8,
    "class_embed_type": "timestep",
    "attention_head_dim": 24,
    "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D", "UpBlock2D"],
}
VIDEO = {
    "_class_name": "UNetSpatioTemporalConditionModel",
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
    "layers_per_block": 1,
    "num_attention_heads": [2, 4],
    "cross_attention_dim": 48,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
    "num_frames": 7,
}
REFUSED = {
    "_class_name": "UNetMotionModel",
    "dropout": 0.1,
    "act_fn": "gelu",
    "center_input_sample": True,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "addition_embed_type": "image",
    "class_embed_type": "timestep",
    "class_embeddings_concat": True,
    "num_class_embeds": 10,
    "resnet_time_scale_shift": "scale_shift",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 0.7,
    "time_embedding_type": "fourier",
    "time_embedding_dim": 100,
    "time_embedding_act_fn": "gelu",
    "timestep_post_act": "silu",
    "time_cond_proj_dim": 64,
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
    "dual_cross_attention": True,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 2,
    "encoder_hid_dim": 32,
    "encoder_hid_dim_type": "text_proj",
    "reverse_transformer_layers_per_block": [3, 2, 1],
    "downsample_padding": 0,
    "attention_type": "gated",
    "cross_attention_norm": "layer_norm",
    "layers_per_block": [1, 2, 2],
    "cross_attention_dim": [48, 48, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
REFUSED_IN_VIDEO = {
    "_class_name": "UNetMotionModel",
    "norm_num_groups": 16,
    "norm_eps": 1e-6,
    "use_linear_projection": False,
    "only_cross_attention": True,
    "addition_embed_type": None,
    "num_class_embeds": 10,
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlockSpatioTemporal"],
}


def test_an_image_config_is_read() -> None:
    assert UNetSpec.from_config(UNET) == UNetSpec(
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 96),
        layers_per_block=2,
        transformer_depth=(0, 2, 3),
        mid_depth=3,
        heads=(2, 4, 6),
        context_dim=48,
        vector_dim=80,
        time_id_dim=8,
    )


def test_a_video_config_is_read() -> None:
    assert UNetSpec.from_config(VIDEO) == UNetSpec(
        in_channels=8,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        transformer_depth=(1, 0),
        mid_depth=1,
        heads=(2, 4),
        context_dim=48,
        vector_dim=24,
        time_id_dim=8,
        temporal=True,
    )


def test_a_config_without_a_context_is_read() -> None:
    spec = UNetSpec(
        in_channels=6,
        out_channels=3,
        block_out_channels=(32, 48, 64),
        layers_per_block=1,
        transformer_depth=(0, 0, 1),
        mid_depth=1,
        heads=(2, 3, 4),
        context_dim=0,
    )
    assert UNetSpec.from_config(PIXELS) == spec
    changed = UNetSpec.from_config({**PIXELS, "flip_sin_to_cos": False, "freq_shift": 1, "num_class_embeds": 10})
    assert changed == replace(spec, sines_first=True, freq_shift=1, num_class_embeds=10, vector_dim=1)


def test_heads_over_pixels_are_given_by_their_width_or_their_number() -> None:
    """In this class ``attention_head_dim`` is no number of heads, unlike in the other."""
    silent = {key: value for key, value in PIXELS.items() if key != "attention_head_dim"}
    assert UNetSpec.from_config(silent).heads == (4, 6, 8)
    assert UNetSpec.from_config({**PIXELS, "attention_head_dim": None}).heads == (1, 1, 1)
    assert UNetSpec.from_config({**PIXELS, "num_attention_heads": 2}).heads == (2, 2, 2)
    assert UNetSpec.from_config({**PIXELS, "attention_head_dim": 64}).heads[2] == 1
    with pytest.raises(ValueError, match="attention_head_dim=24 does not divide the 64 channels of level 2"):
        UNetSpec.from_config({**PIXELS, "attention_head_dim": 24})


def test_resolution_is_changed_in_one_way_alone() -> None:
    both = {"downsample_type": "resnet", "upsample_type": "resnet"}
    blocks = {
        "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"],
        "up_block_types": ["ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    }
    assert UNetSpec.from_config({**PIXELS, **both, **blocks}).resnet_resampling
    for config in ({**PIXELS, **both}, {**PIXELS, **blocks}, {**PIXELS, **blocks, "downsample_type": "conv"}):
        with pytest.raises(ValueError, match="_block_types holds"):
            UNetSpec.from_config(config)
    with pytest.raises(ValueError, match="downsample_type='fir' is not supported, expected 'conv' or 'resnet'"):
        UNetSpec.from_config({**PIXELS, "downsample_type": "fir", "upsample_type": "fir"})


@pytest.mark.parametrize(("key", "value"), REFUSED_OF_PIXELS.items(), ids=list(REFUSED_OF_PIXELS))
def test_a_config_without_a_context_is_refused_by_the_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key.replace("downsample_type", "upsample_type")):
        UNetSpec.from_config({**PIXELS, key: value})


def test_one_number_stands_for_every_level() -> None:
    config = {**UNET, "transformer_layers_per_block": 2, "attention_head_dim": 4, "norm_eps": 1e-3}
    spec = UNetSpec.from_config({**config, "norm_num_groups": 8, "cross_attention_dim": [48, 48, 48]})
    assert (spec.transformer_depth, spec.mid_depth, spec.heads) == ((0, 2, 2), 2, (4, 4, 4))
    assert (spec.norm_num_groups, spec.norm_eps, spec.context_dim) == (8, 1e-3, 48)


def test_what_a_config_leaves_out_is_what_the_published_class_takes() -> None:
    left_out = ("transformer_layers_per_block", "cross_attention_dim", "layers_per_block", "use_linear_projection")
    config = {key: value for key, value in UNET.items() if key not in left_out and not key.startswith("add")}
    spec = UNetSpec.from_config({**config, "attention_head_dim": 8})
    assert (spec.transformer_depth, spec.context_dim, spec.layers_per_block) == ((0, 1, 1), 1280, 2)
    assert (spec.linear_projection, spec.vector_dim, spec.time_id_dim) == (False, 0, 0)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("stable-diffusion-1.5", {"transformer_depth": (1, 1, 1, 0), "mid_depth": 1, "linear_projection": False}),
        ("stable-diffusion-2.1", {"heads": (5, 10, 20, 20), "linear_projection": True, "vector_dim": 0}),
        ("latent-diffusion-class", {"heads": (1,) * 4, "transformer_depth": (0, 1, 1, 1), "context_dim": 512}),
        ("latent-diffusion-super-resolution", {"heads": (5, 10, 10, 20), "transformer_depth": (0, 0, 0, 1)}),
        ("latent-diffusion-semantic", {"transformer_depth": (0, 0, 0), "mid_depth": 1, "context_dim": 0}),
        ("latent-diffusion-inpainting", {"heads": (8,) * 4, "resnet_resampling": True, "in_channels": 7}),
        ("sdxl-inpainting", {"in_channels": 9, "transformer_depth": (0, 2, 10), "vector_dim": 2816}),
        ("sdxl-refiner", {"transformer_depth": (0, 4, 4, 0), "mid_depth": 4, "vector_dim": 2560}),
        ("x4-upscaler", {"only_cross_attention": (True, True, True, False), "num_class_embeds": 1000}),
        ("x4-upscaler", {"vector_dim": 1, "time_id_dim": 0}),
        ("stable-video-diffusion", {"temporal": True, "vector_dim": 768, "time_id_dim": 256, "norm_num_groups": 32}),
    ],
)
def test_published_configs_are_read(name: str, fields: dict[str, Any]) -> None:
    spec = UNetSpec.from_config(PUBLISHED[name].config)
    assert {field: getattr(spec, field) for field in fields} == fields


def test_only_the_video_network_has_two_epsilons() -> None:
    image, video = UNetSpec.from_config({**UNET, "norm_eps": 1e-3}), UNetSpec.from_config(VIDEO)
    assert [image.down_eps(level) for level in range(3)] + [image.up_eps] == [1e-3] * 4
    assert (video.down_eps(0), video.down_eps(1), video.up_eps, video.norm_eps) == (1e-6, 1e-5, 1e-6, 1e-5)


@pytest.mark.parametrize(("key", "value"), REFUSED.items(), ids=list(REFUSED))
def test_an_image_config_is_refused_by_the_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        UNetSpec.from_config({**UNET, key: value})


@pytest.mark.parametrize(("key", "value"), REFUSED_IN_VIDEO.items(), ids=list(REFUSED_IN_VIDEO))
def test_a_video_config_is_refused_by_the_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        UNetSpec.from_config({**VIDEO, key: value})


@pytest.mark.parametrize("value", [False, True])
def test_upcasting_attention_is_no_other_network(value: bool) -> None:
    assert UNetSpec.from_config({**UNET, "upcast_attention": value}) == UNetSpec.from_config(UNET)


@pytest.mark.parametrize("heads", [[2, 5, 6], [2, 4, 5]])
def test_heads_that_do_not_divide_the_channels_are_refused(heads: list[int]) -> None:
    with pytest.raises(ValueError, match="heads=5 of level"):
        UNetSpec.from_config({**UNET, "attention_head_dim": heads})
    # A level without attention has no heads.
    UNetSpec.from_config({**UNET, "attention_head_dim": [5, 4, 6]})


def test_the_ways_must_have_as_many_blocks_as_levels() -> None:
    with pytest.raises(ValueError, match="down_block_types holds 3 blocks, expected 2"):
        UNetSpec.from_config({**UNET, "block_out_channels": [32, 64], "attention_head_dim": 2})


def test_a_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(VIDEO))
    assert read_unet_spec(tmp_path) == UNetSpec.from_config(VIDEO)
