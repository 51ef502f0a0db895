"""Training on a GPU: everything that is drawn, noised and multiplied must be there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from models.spec.vae import VAESpec
from models.training import autoencoder, clips, emoji_svd, temporal_autoencoder, video
from models.training.autoencoder import train_autoencoder
from models.training.clips import encoded_clips
from models.training.loop import Recipe
from models.training.temporal_autoencoder import train_temporal_autoencoder
from models.training.tiny_autoencoder import SPEC, train_tiny_autoencoder
from models.training.video import STAGES, train_video
from tests.models.training.moving_art import animations, drawings

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

DEVICE = "cuda"
RECIPE = Recipe(steps=3, peak_lr=1e-3, final_lr=1e-3, warmup=1, ema=0.5)
IMAGE = VAESpec(latent_channels=8, block_out_channels=(8, 8, 8, 16), layers_per_block=1, norm_num_groups=1)


def devices(network: nn.Module) -> set[str]:
    return {parameter.device.type for parameter in network.parameters()}


def test_every_network_is_trained_where_the_default_device_is(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(autoencoder, "HELD_OUT", 1)
    monkeypatch.setattr(clips, "PART", 4)
    with torch.device(DEVICE):
        vae = train_autoencoder(drawings(), tmp_path / "vae.pt", RECIPE, IMAGE, 4)
        tiny = train_tiny_autoencoder(drawings(), vae, tmp_path / "tiny.pt", RECIPE, SPEC, 4)
        temporal = train_temporal_autoencoder(drawings(), animations(), vae, tmp_path / "temporal.pt", RECIPE, 1)
        moving = encoded_clips(tmp_path / "clips", 1, drawings(), animations(), vae)
        stage = replace(STAGES[1], recipe=RECIPE)
        networks = train_video(moving, emoji_svd.new_networks(), tmp_path / "video.pt", stage, 4)
        resumed = train_video(
            moving,
            networks.requires_grad_(True),
            tmp_path / "video.pt",
            replace(stage, recipe=replace(RECIPE, steps=5)),
            4,
        )
    for network in (vae, tiny, temporal, networks, resumed):
        assert devices(network) == {DEVICE}
        assert all(bool(parameter.isfinite().all()) for parameter in network.parameters())
    assert {moving.latents.device.type, moving.pictures.device.type, moving.numbers.device.type} == {DEVICE}
    assert temporal_autoencoder.SPEC.latent_channels == video.UNET_CONFIG["out_channels"] == IMAGE.latent_channels
