"""Train the KL autoencoder on the artwork (Rombach et al. 2022, section 3.1, without the adversarial term)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.spec.vae import VAESpec
from models.training.artwork import Drawings
from models.training.loop import Recipe, train
from models.vae import VAE

SPEC = VAESpec(
    latent_channels=8,
    block_out_channels=(16, 32, 64, 128),
    layers_per_block=1,
    # One group is layer norm over the whole map: it keeps the hues apart that many small groups erase.
    norm_num_groups=1,
    scaling_factor=1.0,
    force_upcast=False,
)
RECIPE = Recipe(steps=4_200, peak_lr=2e-3, final_lr=2e-5, warmup=200, decay=0.5)
BATCH = 16
KL_WEIGHT = 2e-3
HELD_OUT = 256


@dataclass(frozen=True)
class Split:
    """Premultiplied uint8 pictures [N, 4, S, S] to learn from and to be measured on."""

    training: Tensor
    held_out: Tensor


def split(drawings: Drawings, seed: int = 0) -> Split:
    """Set :data:`HELD_OUT` random drawings aside (the same concept in another style may be among the rest)."""
    pixels = torch.asarray(np.ascontiguousarray(drawings.pixels.transpose(0, 3, 1, 2)))
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed), device="cpu").to(pixels.device)
    return Split(pixels[order[HELD_OUT:]], pixels[order[:HELD_OUT]])


def train_autoencoder(
    drawings: Drawings, checkpoint: Path, recipe: Recipe = RECIPE, spec: VAESpec = SPEC, batch: int = BATCH
) -> VAE:
    """Train, or resume, and return the averaged network."""
    torch.manual_seed(recipe.seed)
    data = split(drawings)
    vae = VAE(spec)
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU

    def loss(_step: int, generator: torch.Generator) -> Tensor:
        picked = torch.randint(len(data.training), (batch,), generator=generator)
        pictures = augment(data.training[picked], generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast(pictures.device.type, torch.bfloat16):
            mean, log_variance = vae.moments(pictures)
            noise = torch.randn(mean.shape, generator=generator)
            latents = mean + torch.exp(0.5 * log_variance.float()) * noise
            decoded = vae.decode(latents).float()
        return reconstruction_loss(decoded, pictures) + KL_WEIGHT * kl(mean.float(), log_variance.float())

    def report(step: int, average: torch.nn.Module) -> None:
        averaged = cast(VAE, average)
        decibels = psnr(averaged.encode, averaged.decode, on_white(data.held_out))
        print(f"step {step}: {decibels:.2f} dB on {HELD_OUT} held-out drawings", flush=True)

    return train(vae, loss, recipe, checkpoint, report)  # type: ignore[return-value]


def reconstruction_loss(decoded: Tensor, pictures: Tensor) -> Tensor:
    """L1 + MSE + half the L1 of neighbouring differences (edges), both [B, 3, H, W]."""
    error = decoded - pictures
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2.0 * error.square().mean() + 0.5 * edges


def kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the unit Gaussian, averaged over latents."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()


def augment(premultiplied: Tensor, generator: torch.Generator, shift: int = 4) -> Tensor:
    """uint8 [B, 4, S, S] -> fp32 [B, 3, S, S] in [-1, 1]: mirrored, moved by up to ``shift`` pixels, and laid on
    white or (three times in ten) on a random colour."""
    batch, _, size, _ = premultiplied.shape
    padded = F.pad(premultiplied, (shift,) * 4)
    offsets = torch.randint(2 * shift + 1, (batch, 2), generator=generator).tolist()
    moved = torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(padded, offsets, strict=True)])
    mirror = torch.rand(batch, generator=generator) < 0.5
    moved = torch.where(mirror[:, None, None, None], moved.flip(-1), moved)
    coloured = torch.rand(batch, 1, generator=generator) < 0.3
    background = torch.where(coloured, torch.rand(batch, 3, generator=generator), torch.ones(batch, 3))
    return composite(moved, background)


def on_white(premultiplied: Tensor) -> Tensor:
    """uint8 [B, 4, S, S] -> fp32 [B, 3, S, S] in [-1, 1]."""
    return composite(premultiplied, torch.ones(len(premultiplied), 3))


def composite(premultiplied: Tensor, background: Tensor) -> Tensor:
    """Lay uint8 [B, 4, S, S] on colours [B, 3] in [0, 1] -> fp32 [B, 3, S, S] in [-1, 1]."""
    colour, alpha = premultiplied[:, :3].float() / 255, premultiplied[:, 3:].float() / 255
    return (colour + (1.0 - alpha) * background[:, :, None, None]) * 2.0 - 1.0


@torch.no_grad()
def psnr(encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor], pictures: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of decode(encode(pictures)), the mean over pictures in [-1, 1]."""
    values = []
    for chunk in pictures.split(32):
        decoded = decode(encode(chunk)).clamp(-1.0, 1.0)
        mse = ((decoded - chunk) / 2.0).square().mean(dim=(1, 2, 3))
        values.append(-10.0 * torch.log10(mse))
    return float(torch.cat(values).mean())


@torch.no_grad()
def latent_std(vae: VAE, pictures: Tensor) -> float:
    """Standard deviation of the unscaled posterior means over pictures [B, 3, H, W]."""
    return float(torch.cat([vae.moments(chunk)[0] for chunk in pictures.split(32)]).std())
