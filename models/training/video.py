"""Train the video model in the family's latents: image and temporal layers together, from the first frame alone
(Blattmann et al. 2023, "Stable Video Diffusion", section 4.1 and appendix D)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from models.blocks import fourier_features
from models.conditioners.video import VISION_SIZE, resize_antialiased
from models.training.clips import FRAMES, Clips
from models.training.loop import Recipe, train
from models.unet import UNet
from models.video_blocks import Mixer

UNET_CONFIG = {
    "_class_name": "UNetSpatioTemporalConditionModel",
    "sample_size": 8,
    "in_channels": 16,
    "out_channels": 8,
    "num_frames": FRAMES,
    "block_out_channels": [64, 128],
    "layers_per_block": 1,
    # Attention where the latents are whole and, in the middle, where they are halved.
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
    "transformer_layers_per_block": 1,
    "num_attention_heads": [2, 4],
    "cross_attention_dim": 64,
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 48,
}
SCHEDULER_CONFIG = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_type": "continuous",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "interpolation_type": "linear",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
}
VISION_CONFIG: dict[str, Any] = {
    "image_size": VISION_SIZE,
    "patch_size": 32,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 64,
    "hidden_act": "gelu",
}
COLOUR_MEAN = (0.5, 0.5, 0.5)
COLOUR_STD = (0.5, 0.5, 0.5)
BATCH = 16
DROPOUT = 0.1
"""Clips without their picture: no token and an empty latent, which guidance asks for."""


@dataclass(frozen=True)
class Stage:
    """A part of the training: how long, at which noise, and what counts.

    ``log_sigma`` is mean and spread of the logarithm of the noise level (appendix D). ``change_weight`` adds to the
    squared error that of the changes from frame to frame. It does not move the minimum, a mean of the data either way;
    it spends the network's capacity on errors that flicker before those that stand still.
    """

    recipe: Recipe
    log_sigma: tuple[float, float]
    change_weight: float = 0.0


STAGES = (
    Stage(Recipe(steps=5_000, peak_lr=1e-3, final_lr=2e-5, warmup=200, decay=0.6), (1.0, 1.6)),
    Stage(Recipe(steps=4_000, peak_lr=6e-4, final_lr=1e-5, warmup=200, decay=0.8, seed=1), (0.2, 1.5), 0.5),
    Stage(Recipe(steps=3_000, peak_lr=4e-4, final_lr=1e-5, warmup=100, decay=0.9, seed=2), (-0.3, 1.3), 3.0),
    Stage(Recipe(steps=1_800, peak_lr=3e-4, final_lr=1e-5, warmup=100, decay=0.9, seed=3), (-0.8, 1.2), 5.0),
)
"""Motion first, then what is seen closely, then that what stands still does so."""
AVERAGED = (2, 4)
"""Numbers of the stages whose networks' weights are averaged to be the model's (Wortsman et al. 2022, "Model soups"):
it flickers less than either."""
MIX_SHIFT = 0.1
"""Added to the logits of that mean's mixers, in favour of what a layer makes of each frame by itself: clips flicker 5 %
less and move 8 % less. Chosen on drawings that the card does not use."""


class VideoNetworks(nn.Module):
    """All that is trained together."""

    def __init__(self, unet: UNet, tower: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.unet = unet
        self.tower = tower


def new_tower(seed: int) -> CLIPVisionModelWithProjection:
    """An untrained vision tower."""
    torch.manual_seed(seed)
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION_CONFIG))


def train_video(
    clips: Clips, networks: VideoNetworks, checkpoint: Path, stage: Stage, batch: int = BATCH
) -> VideoNetworks:
    """Train, or resume, one stage and return the averaged networks."""
    unet, tower = networks.unet, networks.tower
    mean, spread = stage.log_sigma

    def loss(_step: int, generator: torch.Generator) -> Tensor:
        picked = torch.randint(len(clips), (batch,), generator=generator)
        kept = (torch.rand(batch, generator=generator) >= DROPOUT).float()
        sigma = torch.exp(mean + spread * torch.randn(batch, generator=generator))
        latents = clips.latents[picked].float()
        noise = torch.randn(latents.shape, generator=generator)
        with torch.autocast(latents.device.type, torch.bfloat16):
            token = kept[:, None] * tower(vision_input(clips.pictures[picked])).image_embeds
            condition = kept[:, None, None, None] * clips.conditions[picked].float()
            output = unet(
                network_input(latents + _column(sigma) * noise, sigma, condition),
                0.25 * sigma.log(),
                token[:, None],
                vector(clips.numbers[picked], unet.spec.time_id_dim),
            )
        # With the preconditioning of SVD, c_out F + c_skip y = x asks F for (x - c_skip y) / c_out, of unit spread.
        level = _column((sigma.square() + 1.0).sqrt())
        target = (noise - _column(sigma) * latents) / level
        error = output.float() - target
        return error.square().mean() + stage.change_weight * error.diff(dim=1).square().mean()

    return train(networks, loss, stage.recipe, checkpoint)  # type: ignore[return-value]


@torch.no_grad()
def average(trained: Sequence[VideoNetworks]) -> VideoNetworks:
    """Networks with the mean of their weights."""
    mean = copy.deepcopy(trained[0])
    for weight, *all_of_it in zip(mean.parameters(), *(one.parameters() for one in trained), strict=True):
        weight.copy_(torch.stack(all_of_it).mean(dim=0))
    return mean


@torch.no_grad()
def shift_mixers(unet: UNet, shift: float) -> None:
    """Move every mixture of a layer over each frame and one over all frames towards the first, in place, by ``shift``
    of its logit."""
    for layer in unet.modules():
        if isinstance(layer, Mixer):
            layer.mix_factor.add_(shift)


def network_input(noisy: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
    """c_in times the noisy latents [B, T, C, h, w] at the levels sigma [B], with the condition [B, C, h, w] behind the
    channels of each frame: [B, T, 2 C, h, w]."""
    scaled = noisy / _column((sigma.square() + 1.0).sqrt())
    return torch.cat([scaled, condition[:, None].expand(-1, noisy.shape[1], -1, -1, -1)], dim=2)


def vision_input(pictures: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> what the vision tower sees, fp32 [B, 3, 224, 224]."""
    seen = resize_antialiased(pictures.float() / 127.5 - 1.0, VISION_SIZE, VISION_SIZE)
    mean, std = (torch.tensor(values)[:, None, None] for values in (COLOUR_MEAN, COLOUR_STD))
    return ((seen + 1.0) / 2.0 - mean) / std


def vector(numbers: Tensor, dim: int) -> Tensor:
    """Frames a second, motion bucket and noise [B, 3] -> Fourier features [B, 3 * dim], of one frame a second less, as
    published."""
    shifted = numbers - torch.tensor([1.0, 0.0, 0.0])
    return fourier_features(shifted.flatten(), dim).view(len(numbers), -1)


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None, None]
