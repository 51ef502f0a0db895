"""One tiny network of every family that can be exported, with random weights, and which of them are tried today."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from engines.networks import decoder_signature, networks_of, unet_signature
from engines.signature import Signature
from models.spec.unet import UNetSpec
from models.spec.vae import TinyAutoencoderSpec, VQSpec
from models.tiny_autoencoder import TinyAutoencoder
from models.unet import UNet
from models.vae import VAEDecoder
from models.vq import VQ
from tests.support.tiny_towers import write_tiny_sd, write_tiny_sd3, write_tiny_svd
from tests.support.tiny_xl import randomise

Load = Callable[[Path], tuple[nn.Module, Signature]]
"""Writes what it needs into a folder that is not there yet, and returns the network and its call."""


def by_rotation(cases: list[Any]) -> list[Any]:
    """Every case as a parameter; today's alone is quick, the others are marked slow."""
    today = int(time.time() // 86400) % len(cases)
    return [pytest.param(case, marks=() if i == today else pytest.mark.slow) for i, case in enumerate(cases)]


def of_folder(write: Callable[[Path], None], name: str) -> Load:
    """One network of a model folder."""

    def load(folder: Path) -> tuple[nn.Module, Signature]:
        write(folder)
        network = networks_of(folder)[name]
        return network.load(), network.signature

    return load


def write_tiny_sd2(folder: Path) -> None:
    """Stable Diffusion with linear projections."""
    write_tiny_sd(folder, 2)


def class_conditional(_: Path) -> tuple[nn.Module, Signature]:
    """Class indices in the vector, and a first attention that reads the context: the x4 upscaler's form."""
    spec = UNetSpec(
        in_channels=7,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        transformer_depth=(0, 1),
        mid_depth=1,
        heads=(2, 2),
        context_dim=12,
        vector_dim=1,
        num_class_embeds=30,
        only_cross_attention=(False, True),
        norm_num_groups=4,
    )
    return randomise(UNet(spec), 1), unet_signature(spec)


def without_context(_: Path) -> tuple[nn.Module, Signature]:
    """Attention over pixels alone, and residual blocks that change the resolution: latent diffusion's inpainting."""
    spec = UNetSpec(
        in_channels=7,
        out_channels=3,
        block_out_channels=(16, 32),
        layers_per_block=1,
        transformer_depth=(0, 1),
        mid_depth=1,
        heads=(2, 2),
        context_dim=0,
        resnet_resampling=True,
        norm_num_groups=4,
    )
    return randomise(UNet(spec), 1), unet_signature(spec)


def tiny_decoder(_: Path) -> tuple[nn.Module, Signature]:
    """The distilled autoencoder's."""
    widths, blocks = (8, 8), (1, 1)
    spec = TinyAutoencoderSpec(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
    )
    vae = TinyAutoencoder(spec)
    randomise(vae, 1)
    return VAEDecoder(vae).eval(), decoder_signature(spec, spec.downscale)


def quantised_decoder(_: Path) -> tuple[nn.Module, Signature]:
    """Latent diffusion's, whose first step is the nearest entry of a codebook."""
    spec = VQSpec(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, num_vq_embeddings=20)
    vae = VQ(spec)
    randomise(vae, 1)
    return VAEDecoder(vae).eval(), decoder_signature(spec, spec.downscale)


CHEAP = ("tiny-decoder", "sd3-text-encoder-3", "svd-image-encoder")
FAMILIES: dict[str, Load] = {
    "tiny-decoder": tiny_decoder,
    "sd3-text-encoder-3": of_folder(write_tiny_sd3, "text_encoder_3"),
    "svd-image-encoder": of_folder(write_tiny_svd, "image_encoder"),
    "sd3-transformer": of_folder(write_tiny_sd3, "transformer"),
    "sd-text-encoder": of_folder(write_tiny_sd, "text_encoder"),
    "svd-decoder": of_folder(write_tiny_svd, "vae/decoder"),
    "svd-encoder": of_folder(write_tiny_svd, "vae/encoder"),
    "sd2-unet": of_folder(write_tiny_sd2, "unet"),
    "quantised-decoder": quantised_decoder,
    "class-conditional-unet": class_conditional,
    "unet-without-context": without_context,
    "svd-unet": of_folder(write_tiny_svd, "unet"),
    "sd3-text-encoder-2": of_folder(write_tiny_sd3, "text_encoder_2"),
}
"""By name. The image UNet with a vector, its decoder and its encoder are the SDXL folder's: other tests export it."""
COSTLY = [name for name in FAMILIES if name not in CHEAP]
