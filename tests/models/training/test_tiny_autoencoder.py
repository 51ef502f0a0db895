"""Distilling the image autoencoder into the format of TAESD."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from models.spec.vae import TinyAutoencoderSpec, VAESpec
from models.training.loop import Recipe
from models.training.tiny_autoencoder import tiny_config, train_tiny_autoencoder
from models.vae import VAE
from models.weights import load_tiny_decoder, save_network
from tests.models.training.moving_art import drawings

TINY = TinyAutoencoderSpec(
    latent_channels=4,
    encoder_block_out_channels=(8, 8, 8, 8),
    decoder_block_out_channels=(8, 8, 8, 8),
    num_encoder_blocks=(1, 1, 1, 1),
    num_decoder_blocks=(1, 1, 1, 1),
)
RECIPE = Recipe(steps=25, peak_lr=5e-3, final_lr=1e-3, warmup=1, ema=0.5, save_every_s=999.0)


def test_it_learns_and_diffusers_reads_it(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    vae = VAE(VAESpec(latent_channels=4, block_out_channels=(4, 4, 4, 8), layers_per_block=1, norm_num_groups=1)).eval()
    monkeypatch.setattr("models.training.autoencoder.HELD_OUT", 1)
    pictures = torch.from_numpy(drawings().on_background()).permute(0, 3, 1, 2) / 127.5 - 1.0

    def error(steps: int, name: str) -> tuple[float, torch.nn.Module]:
        recipe = Recipe(**{**RECIPE.__dict__, "steps": steps})
        tiny = train_tiny_autoencoder(drawings(), vae, tmp_path / name, recipe, TINY, 4).eval()
        with torch.no_grad():
            return float((tiny.decode(vae.encode(pictures)) - pictures).abs().mean()), tiny

    (untrained, _), (trained, tiny) = error(1, "short.pt"), error(RECIPE.steps, "long.pt")
    assert trained < 0.8 * untrained

    save_network(tmp_path / "vae_tiny", tiny_config(TINY), tiny.state_dict(), torch.float32)
    theirs = AutoencoderTiny.from_pretrained(tmp_path / "vae_tiny")
    ours = load_tiny_decoder(tmp_path / "vae_tiny")
    with torch.no_grad():
        latents = theirs.encode(pictures).latents
        assert torch.allclose(ours.encode(pictures), latents, atol=1e-5)
        assert torch.allclose(ours.decode(latents), theirs.decode(latents).sample, atol=1e-5)
        assert not torch.allclose(ours.decode(latents), theirs.decode(latents + 0.1).sample, atol=1e-3)
