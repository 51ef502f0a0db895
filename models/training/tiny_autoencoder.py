"""Distil the image autoencoder into one of plain convolutions, in the format of TAESD: the same latents, a fraction of
the cost, softer pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.spec.vae import TinyAutoencoderSpec
from models.tiny_autoencoder import TinyAutoencoder
from models.training.artwork import Drawings
from models.training.autoencoder import augment, reconstruction_loss, split
from models.training.loop import Recipe, train
from models.vae import LAYOUT, VAE

SPEC = TinyAutoencoderSpec(
    latent_channels=8,
    encoder_block_out_channels=(16, 16, 16, 16),
    decoder_block_out_channels=(16, 16, 16, 16),
    # What is near the latents is cheap, so that is where the blocks are.
    num_encoder_blocks=(1, 2, 3, 3),
    num_decoder_blocks=(3, 3, 2, 1),
)
RECIPE = Recipe(steps=4_000, peak_lr=2e-3, final_lr=2e-5, warmup=100, decay=0.6)
BATCH = 16


def train_tiny_autoencoder(
    drawings: Drawings,
    vae: VAE,
    checkpoint: Path,
    recipe: Recipe = RECIPE,
    spec: TinyAutoencoderSpec = SPEC,
    batch: int = BATCH,
) -> TinyAutoencoder:
    """Train, or resume, and return the averaged network. Its encoder learns the latents of ``vae`` in the denoiser's
    scale, its decoder the pictures that they came from."""
    torch.manual_seed(recipe.seed)
    data = split(drawings)
    tiny = TinyAutoencoder(spec)
    tiny.to(memory_format=LAYOUT)  # type: ignore[call-overload]  # twice as fast on a CPU

    def loss(_step: int, generator: torch.Generator) -> Tensor:
        picked = torch.randint(len(data.training), (batch,), generator=generator)
        pictures = augment(data.training[picked], generator).contiguous(memory_format=LAYOUT)
        with torch.no_grad():
            mean, log_variance = vae.moments(pictures)
            noise = torch.randn(mean.shape, generator=generator)
            latents, clean = vae.sample(mean, log_variance, noise), vae.sample(mean, log_variance, None)
        with torch.autocast(pictures.device.type, torch.bfloat16):
            decoded, encoded = tiny.decode(latents).float(), tiny.encode(pictures).float()
        return reconstruction_loss(decoded, pictures) + (encoded - clean).square().mean()

    return train(tiny, loss, recipe, checkpoint)  # type: ignore[return-value]


def tiny_config(spec: TinyAutoencoderSpec) -> dict[str, object]:
    """``config.json`` as ``AutoencoderTiny`` is published."""
    return {
        "_class_name": "AutoencoderTiny",
        "act_fn": "relu",
        "upsample_fn": "nearest",
        "in_channels": spec.in_channels,
        "out_channels": spec.out_channels,
        "latent_channels": spec.latent_channels,
        "encoder_block_out_channels": list(spec.encoder_block_out_channels),
        "decoder_block_out_channels": list(spec.decoder_block_out_channels),
        "num_encoder_blocks": list(spec.num_encoder_blocks),
        "num_decoder_blocks": list(spec.num_decoder_blocks),
        "latent_magnitude": 3,
        "latent_shift": 0.5,
        "scaling_factor": spec.scaling_factor,
        "upsampling_scaling_factor": 2,
        "force_upcast": spec.force_upcast,
    }
