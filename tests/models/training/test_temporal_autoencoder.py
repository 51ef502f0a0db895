"""The video autoencoder learns the image autoencoder's latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.spec.vae import TemporalVAESpec, VAESpec
from models.temporal_decoder import TemporalDecoderVAE
from models.training import temporal_autoencoder
from models.training.clips import random_frames
from models.training.loop import Recipe
from models.training.temporal_autoencoder import ANCHOR, cropped, new_temporal_autoencoder, train_temporal_autoencoder
from models.vae import VAE
from tests.models.training.moving_art import animations, drawings

IMAGE = VAESpec(
    latent_channels=4,
    block_out_channels=(4, 4, 4, 8),
    layers_per_block=1,
    norm_num_groups=1,
    scaling_factor=0.7,
    force_upcast=False,
)
TINY = TemporalVAESpec(
    latent_channels=4, block_out_channels=(64, 32, 32, 32), layers_per_block=1, norm_num_groups=32, force_upcast=False
)
RECIPE = Recipe(steps=20, peak_lr=2e-3, final_lr=5e-4, warmup=1, ema=0.5, save_every_s=999.0)


@pytest.fixture
def image_vae(monkeypatch: pytest.MonkeyPatch) -> VAE:
    monkeypatch.setattr(temporal_autoencoder, "SPEC", TINY)
    torch.manual_seed(0)
    return VAE(IMAGE).eval().requires_grad_(False)


def test_it_learns_on_crops_first_and_then_on_whole_pictures(
    image_vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = []
    real = temporal_autoencoder.reconstruction_loss

    def watched(decoded: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        sides.append(pictures.shape[-1])
        return real(decoded, pictures)

    monkeypatch.setattr(temporal_autoencoder, "reconstruction_loss", watched)
    monkeypatch.setattr(temporal_autoencoder, "CLIPS", 1)
    monkeypatch.setattr(temporal_autoencoder, "FRAMES", 2)
    trained = train_temporal_autoencoder(drawings(), animations(), image_vae, tmp_path / "a.pt", RECIPE)
    assert sides == [32] * 12 + [64] * 8
    assert trained.spec.scaling_factor == 0.7
    untrained = new_temporal_autoencoder(image_vae, RECIPE.seed)
    frames = random_frames(np.random.default_rng(5), 2, 2, drawings(), animations())

    def error(vae: TemporalDecoderVAE) -> float:
        with torch.no_grad():
            latents = image_vae.encode(frames.flatten(0, 1)).unflatten(0, (2, 2))
            return float((vae.decode(latents, 2) - frames).abs().mean())

    assert error(trained) < 0.95 * error(untrained)


def test_an_untrained_decoder_has_its_anchors(image_vae: VAE) -> None:
    vae = new_temporal_autoencoder(image_vae, 0)
    bias = vae.decoder.get_parameter("up_blocks.3.resnets.1.spatial_res_block.conv2.bias")
    assert torch.equal(bias[1::2], torch.full((32,), ANCHOR)) and bias[::2].abs().max() < 1.0
    again, other = new_temporal_autoencoder(image_vae, 0), new_temporal_autoencoder(image_vae, 1)
    latents = torch.randn(1, 2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made, same, different = (network.decode(latents, 2) for network in (vae, again, other))
    assert torch.equal(made, same) and not torch.allclose(made, different, atol=0.01)


def test_a_crop_is_the_same_square_of_every_frame() -> None:
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    frames = (10 * rows + columns).expand(2, 3, 3, 8, 8)
    crops = cropped(frames, 4, torch.Generator().manual_seed(2))
    assert crops.shape == (2, 3, 3, 4, 4)
    assert torch.equal(crops[:, :1].expand_as(crops), crops)
    corner = crops[..., :1, :1]
    assert torch.equal(crops - corner, (10 * rows + columns)[:4, :4].expand_as(crops))
    assert not torch.equal(crops[0], crops[1])
