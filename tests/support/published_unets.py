"""The configs of published denoising UNets, as their ``unet/config.json`` give them, with their parameter counts; and
published classes in fp64.

The counts of the latent-diffusion and retrieval networks, most of which were never published in this format, are those
of the same shapes; those of the networks with attention over pixels are also those of the authors' code.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

from models.blocks import fourier_features

ATTENTIVE, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
FIRST_THREE = (ATTENTIVE, ATTENTIVE, ATTENTIVE, PLAIN)
LAST_THREE = (PLAIN, ATTENTIVE, ATTENTIVE, ATTENTIVE)


@dataclass(frozen=True)
class Published:
    """One network."""

    config: dict[str, Any]
    parameters: int


def _image(down: tuple[str, ...], **options: Any) -> dict[str, Any]:
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": list(down),
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "layers_per_block": 2,
        **options,
    }


def _sdxl(**options: Any) -> dict[str, Any]:
    shape = {
        "block_out_channels": [320, 640, 1280],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    return _image((PLAIN, ATTENTIVE, ATTENTIVE), **{**shape, **options})


SD1 = _image(FIRST_THREE, block_out_channels=[320, 640, 1280, 1280], attention_head_dim=8, cross_attention_dim=768)
SD2 = {**SD1, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True}
REFINER = {
    **_sdxl(
        block_out_channels=[384, 768, 1536, 1536],
        transformer_layers_per_block=4,
        attention_head_dim=[6, 12, 24, 24],
        cross_attention_dim=1280,
        projection_class_embeddings_input_dim=2560,
    ),
    "down_block_types": [PLAIN, ATTENTIVE, ATTENTIVE, PLAIN],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
UPSCALER = _image(
    LAST_THREE,
    in_channels=7,
    block_out_channels=[256, 512, 512, 1024],
    attention_head_dim=8,
    cross_attention_dim=1024,
    use_linear_projection=True,
    only_cross_attention=[True, True, True, False],
    num_class_embeds=1000,
)
LDM_CLASS = _image(
    LAST_THREE,
    in_channels=3,
    out_channels=3,
    block_out_channels=[192, 384, 576, 960],
    attention_head_dim=1,
    cross_attention_dim=512,
)
LDM_LAYOUT = {
    **LDM_CLASS,
    "block_out_channels": [128, 256, 384, 512],
    "attention_head_dim": [4, 8, 12, 16],
    "transformer_layers_per_block": 3,
}
RDM_FFHQ = {**LDM_CLASS, "block_out_channels": [224, 448, 672, 896], "attention_head_dim": [7, 14, 21, 28]}
RDM_768 = _image(
    FIRST_THREE,
    in_channels=16,
    out_channels=16,
    block_out_channels=[448, 896, 1344, 1792],
    attention_head_dim=[14, 28, 42, 56],
    cross_attention_dim=768,
)


def _pixels(in_channels: int, down: list[str], **options: Any) -> dict[str, Any]:
    config = _image(tuple(down), **options)
    return {**config, "_class_name": "UNet2DModel", "in_channels": in_channels, "out_channels": 3}


PIXELS, RESAMPLING = "AttnDownBlock2D", "ResnetDownsampleBlock2D"
LDM_SUPER_RESOLUTION = _pixels(
    6, [PLAIN, PLAIN, PLAIN, PIXELS], block_out_channels=[160, 320, 320, 640], attention_head_dim=32
)
LDM_SEMANTIC = _pixels(6, [PLAIN] * 3, block_out_channels=[128, 512, 1024], attention_head_dim=128)
"""Attention at 8 times downsampling and below, which three levels do not reach: it is in the middle block alone."""
LDM_INPAINTING = _pixels(
    7,
    [RESAMPLING, PIXELS, PIXELS, PIXELS],
    block_out_channels=[256, 512, 768, 1024],
    num_attention_heads=8,
    downsample_type="resnet",
    upsample_type="resnet",
)
SVD = {
    "_class_name": "UNetSpatioTemporalConditionModel",
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * 3 + ["DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal"] + ["CrossAttnUpBlockSpatioTemporal"] * 3,
    "layers_per_block": 2,
    "transformer_layers_per_block": 1,
    "num_attention_heads": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 768,
    "num_frames": 25,
    "sample_size": 96,
}
PUBLISHED = {
    "stable-diffusion-1.5": Published(SD1, 859_520_964),
    "stable-diffusion-2.1": Published({**SD2, "upcast_attention": True}, 865_910_724),
    "latent-diffusion-text": Published({**SD1, "cross_attention_dim": 1280}, 872_300_484),
    "latent-diffusion-class": Published(LDM_CLASS, 400_920_579),
    "latent-diffusion-layout": Published(LDM_LAYOUT, 246_277_379),
    "latent-diffusion-super-resolution": Published(LDM_SUPER_RESOLUTION, 113_622_563),
    "latent-diffusion-semantic": Published(LDM_SEMANTIC, 215_229_315),
    "latent-diffusion-inpainting": Published(LDM_INPAINTING, 387_245_827),
    "retrieval-ffhq": Published(RDM_FFHQ, 414_713_603),
    "retrieval-768": Published(RDM_768, 1_335_480_400),
    "sdxl": Published(_sdxl(), 2_567_463_684),
    "sdxl-inpainting": Published(_sdxl(in_channels=9), 2_567_478_084),
    "sdxl-refiner": Published(REFINER, 2_259_526_660),
    "x4-upscaler": Published(UPSCALER, 473_398_020),
    "stable-video-diffusion": Published(SVD, 1_524_623_082),
}


def in_fp64(published: nn.Module) -> nn.Module:
    """The same network in fp64, its Fourier features too: the published code makes them in fp32 always."""
    twin = copy.deepcopy(published)
    for module in twin.modules():
        if isinstance(module, Timesteps):
            sines_first, shift = not module.flip_sin_to_cos, module.downscale_freq_shift
            module.forward = partial(_features, dim=module.num_channels, sines_first=sines_first, shift=shift)
    return nn.Module.to(twin, torch.float64)


def _features(values: Tensor, dim: int, sines_first: bool, shift: int) -> Tensor:
    return fourier_features(values.double(), dim, sines_first, shift)


SMALL_SDXL = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64, 96],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 3],
    "attention_head_dim": [2, 4, 6],
    "cross_attention_dim": 48,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
    "use_linear_projection": True,
}
"""A small config of SDXL's form, as a folder holds it."""
