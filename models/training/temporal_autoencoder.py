"""Train the video model's autoencoder in the latent space that the family's image autoencoder has already: an encoder
that says what that one says, and a decoder whose frames see each other (Blattmann et al. 2023b, section 3.1.1)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.spec.vae import TemporalVAESpec
from models.temporal_decoder import TemporalDecoderVAE
from models.training.animations import Animations
from models.training.artwork import Drawings
from models.training.autoencoder import reconstruction_loss
from models.training.clips import random_frames
from models.training.loop import Recipe, train
from models.vae import LAYOUT, VAE

SPEC = TemporalVAESpec(
    latent_channels=8,
    # Published video autoencoders have 32 groups in every norm. With one channel a group, a norm over the whole picture
    # forgets how bright and how strong a colour is, so no level has less than two.
    block_out_channels=(64, 64, 64, 128),
    layers_per_block=1,
    norm_num_groups=32,
    force_upcast=False,
)
RECIPE = Recipe(steps=1_800, peak_lr=1e-3, final_lr=2e-5, warmup=100, decay=0.6)
CLIPS = 4
FRAMES = 4
CROP = 32
"""Side of what is seen of each picture at first, which costs a quarter."""
CROPPED_SHARE = 0.6
"""Of all steps."""
FLICKER_WEIGHT = 1.0
"""Of the error in how a pixel changes from frame to frame."""
LAST_BIAS = f"up_blocks.{len(SPEC.block_out_channels) - 1}.resnets.{SPEC.layers_per_block}.spatial_res_block.conv2.bias"
ANCHOR = 4.0
"""First value of one channel in each pair before the last norm. A constant in the group tells the other channel's mean
and strength, which the norm would take from it."""


def train_temporal_autoencoder(
    drawings: Drawings,
    animations: Animations,
    image_vae: VAE,
    checkpoint: Path,
    recipe: Recipe = RECIPE,
    clips: int = CLIPS,
) -> TemporalDecoderVAE:
    """Train, or resume, and return the averaged network, with the image autoencoder's scale."""
    vae = new_temporal_autoencoder(image_vae, recipe.seed)
    for layer in vae.modules():
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=LAYOUT)  # type: ignore[call-overload]  # twice as fast on a CPU

    def loss(step: int, generator: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**62, (1,), generator=generator))
        frames = random_frames(np.random.default_rng(seed), clips, FRAMES, drawings, animations)
        if step < CROPPED_SHARE * recipe.steps:
            frames = cropped(frames, CROP, generator)
        pictures = frames.flatten(0, 1).contiguous(memory_format=LAYOUT)
        with torch.no_grad():
            mean, log_variance = image_vae.moments(pictures)
            latents = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=generator)
        with torch.autocast(frames.device.type, torch.bfloat16):
            own_mean, own_log_variance = vae.moments(pictures)
            decoded = vae.decoder(latents.unflatten(0, frames.shape[:2])).float()
        encoder_error = (own_mean.float() - mean).square().mean() + 0.01 * (
            own_log_variance.float() - log_variance
        ).square().mean()
        changes = (decoded.diff(dim=1) - frames.diff(dim=1)).abs().mean()
        pictured = reconstruction_loss(decoded.flatten(0, 1), pictures)
        return pictured + FLICKER_WEIGHT * changes + encoder_error

    return train(vae, loss, recipe, checkpoint)  # type: ignore[return-value]


def cropped(frames: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """The same random square of all frames of a clip: [B, T, 3, H, W] -> [B, T, 3, side, side]."""
    room = torch.tensor(frames.shape[-2:]) - side + 1
    corners = (torch.rand(len(frames), 2, generator=generator) * room).long().tolist()
    return torch.stack([clip[..., y : y + side, x : x + side] for clip, (y, x) in zip(frames, corners, strict=True)])


def new_temporal_autoencoder(image_vae: VAE, seed: int) -> TemporalDecoderVAE:
    """An untrained autoencoder with the latent scale of the image autoencoder."""
    torch.manual_seed(seed)
    spec = TemporalVAESpec(**{**SPEC.__dict__, "scaling_factor": image_vae.spec.scaling_factor})
    vae = TemporalDecoderVAE(spec)
    with torch.no_grad():
        vae.decoder.get_parameter(LAST_BIAS)[1::2] = ANCHOR
    return vae
