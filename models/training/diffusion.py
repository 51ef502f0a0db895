"""Train the text-to-image model in the autoencoder's latents: UNet and text towers together, v-prediction on a
schedule with zero terminal SNR (Rombach et al. 2022; Salimans and Ho 2022; Lin et al. 2024)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.conditioners.sdxl import SDXLConditioner, size_features
from models.schedule import Schedule
from models.training.artwork import Drawings
from models.training.concepts import CAPTION_STYLES, Concept, random_caption
from models.training.loop import Recipe, train
from models.training.scenes import cast, draw, random_scenes
from models.unet import UNet
from models.vae import VAE

UNET_CONFIG = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": [96, 160],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "transformer_layers_per_block": [1, 1],
    "attention_head_dim": [3, 5],
    "cross_attention_dim": 192,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 192,
    "norm_num_groups": 16,
}
SCHEDULER_CONFIG = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
}
RECIPE = Recipe(steps=3_000, peak_lr=1e-3, final_lr=2e-5, warmup=100, decay=0.5)
SECOND_RECIPE = Recipe(steps=6_000, peak_lr=1e-3, final_lr=2e-5, warmup=100, decay=0.5, seed=1)
SCENES = 12_000
SCENE_SHARE = 0.3
BATCH = 48
CAPTION_DROPOUT = 0.1


class TextToImageNetworks(nn.Module):
    """All that is trained together."""

    def __init__(self, unet: UNet, conditioner: SDXLConditioner) -> None:
        super().__init__()
        self.unet = unet
        self.towers = nn.ModuleList(conditioner.networks)
        self.conditioner = conditioner


class Examples:
    """Captioned latents, resident on one device: single drawings, and scenes made of them."""

    def __init__(
        self,
        drawings: Drawings,
        concepts: Sequence[Concept],
        vae: VAE,
        held_out: Collection[tuple[str, str]] = (),
        scenes: int = 0,
        scene_seed: int = 0,
        styles: Sequence[str] = CAPTION_STYLES,
    ) -> None:
        chosen = without(drawings.select([c.slug for c in concepts], styles), held_out)
        by_slug = {concept.slug: concept for concept in concepts}
        self.captioned = [
            (by_slug[drawings.slugs[c]], drawings.styles[s]) for c, s in zip(chosen.concept, chosen.style, strict=True)
        ]
        self.singles = Posterior.of(chosen.on_background(), vae)
        drawn = random_scenes(cast(chosen, concepts), scenes, scene_seed)
        self.scene_captions = [scene.caption for scene in drawn]
        self.scenes = Posterior.of(np.stack([draw(scene, chosen) for scene in drawn]), vae) if drawn else None
        self.size = chosen.pixels.shape[1]

    def __len__(self) -> int:
        return len(self.singles.mean)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """``count`` random latents [count, C, h, w], sampled from their posteriors, and a caption for each; a share of
        :data:`SCENE_SHARE` are scenes where there are any."""
        of_scenes = 0 if self.scenes is None else round(SCENE_SHARE * count)
        picked = torch.randint(len(self), (count - of_scenes,), generator=generator)
        latents = self.singles.sample(picked, generator)
        words = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        texts = [
            random_caption(concept, style, words) for concept, style in (self.captioned[i] for i in picked.tolist())
        ]
        if self.scenes is not None:
            picked = torch.randint(len(self.scene_captions), (of_scenes,), generator=generator)
            latents = torch.cat([latents, self.scenes.sample(picked, generator)])
            texts += [self.scene_captions[i] for i in picked.tolist()]
        return latents, texts


@dataclass(frozen=True)
class Posterior:
    """What the autoencoder makes of pictures, in the network's scale: mean and spread, each [N, C, h, w]."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, pictures: NDArray[np.uint8], vae: VAE) -> Posterior:
        """Encode uint8 [N, H, W, 3]."""
        x = torch.asarray(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            moments = [vae.moments(chunk.float() / 127.5 - 1.0) for chunk in x.split(32)]
        scale = vae.spec.scaling_factor
        mean = torch.cat([mean for mean, _ in moments]).clone() * scale
        std = torch.cat([torch.exp(0.5 * log_variance) for _, log_variance in moments]).clone() * scale
        return cls(mean, std)

    def sample(self, picked: Tensor, generator: torch.Generator) -> Tensor:
        """Latents [len(picked), C, h, w] of the pictures with these indices."""
        noise = torch.randn(self.mean[picked].shape, generator=generator)
        return self.mean[picked] + self.std[picked] * noise


def without(drawings: Drawings, pairs: Collection[tuple[str, str]]) -> Drawings:
    """The drawings that are not one of these (slug, style) pairs."""
    keep = [
        (drawings.slugs[c], drawings.styles[s]) not in pairs
        for c, s in zip(drawings.concept, drawings.style, strict=True)
    ]
    columns = {key: getattr(drawings, key)[np.array(keep)] for key in ("pixels", "concept", "style")}
    return replace(drawings, **columns)


def train_diffusion(
    examples: Examples, networks: TextToImageNetworks, checkpoint: Path, recipe: Recipe = RECIPE, batch: int = BATCH
) -> TextToImageNetworks:
    """Train, or resume, and return the averaged networks."""
    unet, conditioner = networks.unet, networks.conditioner
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU
    abar = torch.tensor(Schedule.from_config(SCHEDULER_CONFIG).alphas_cumprod)
    sizes = size_features(examples.size, examples.size, unet.spec.time_id_dim)

    def loss(_step: int, generator: torch.Generator) -> Tensor:
        latents, texts = examples.draw(batch, generator)
        ids = [conditioner.tokenize(texts, tower).to(latents.device) for tower in (0, 1)]
        kept = (torch.rand(batch, generator=generator) >= CAPTION_DROPOUT).float()
        times = torch.randint(len(abar), (batch,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        alpha, sigma = (abar[times] ** 0.5)[:, None, None, None], ((1 - abar[times]) ** 0.5)[:, None, None, None]
        with torch.autocast(latents.device.type, torch.bfloat16):
            context, pooled = conditioner.encode_tokens(ids)
            context, pooled = context * kept[:, None, None], pooled * kept[:, None]
            vector = torch.cat([pooled, sizes.expand(batch, -1)], dim=1)
            noisy = (alpha * latents + sigma * noise).contiguous(memory_format=torch.channels_last)
            v = unet(noisy, times.float(), context, vector)
        return (v.float() - (alpha * noise - sigma * latents)).square().mean()

    return train(networks, loss, recipe, checkpoint)  # type: ignore[return-value]
