"""Clips to learn from: mixed, measured, encoded once, the same whenever they are made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.spec.vae import VAESpec
from models.training import clips
from models.training.clips import FRAMES, animated, encoded_clips, random_clips, random_frames, set_in_motion
from models.vae import VAE
from tests.models.training.moving_art import animations, drawings

SPEC = VAESpec(latent_channels=4, block_out_channels=(4, 4, 4, 8), layers_per_block=1, norm_num_groups=1)


@pytest.fixture
def vae() -> VAE:
    torch.manual_seed(0)
    return VAE(SPEC).eval().requires_grad_(False)


def test_an_animation_is_told_its_speed_and_frame_rate() -> None:
    seen = [animated(np.random.default_rng(seed), animations()) for seed in range(6)]
    changes = [bool(np.diff(clip.frames.astype(int), axis=0).any()) for clip in seen]
    still = [clip for clip, change in zip(seen, changes, strict=True) if not change]
    moving = [clip for clip, change in zip(seen, changes, strict=True) if change]
    assert still and moving
    assert all(clip.speed == 0.0 for clip in still)
    assert all(clip.speed > 0.5 for clip in moving)  # a pixel and a half a frame, and the jump where the loop closes
    assert {clip.fps for clip in seen} <= {12, 6, 4} and len({clip.fps for clip in seen}) > 1


def test_a_drawing_in_motion_has_the_speed_that_it_says() -> None:
    made = [set_in_motion(np.random.default_rng(seed), drawings().pixels[0]) for seed in range(12)]
    assert all(clip.frames.shape == (FRAMES, 64, 64, 3) for clip in made)
    for clip in made:
        assert bool(np.diff(clip.frames.astype(int), axis=0).any()) == (clip.speed > 0)


def test_the_same_seed_gives_the_same_clips() -> None:
    def made(seed: int) -> list[bytes]:
        return [clip.frames.tobytes() for clip in random_clips(seed, drawings(), animations(), 3)]

    assert made(1) == made(1) != made(2)


def test_clips_are_encoded_once_and_kept(tmp_path: Path, vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "PART", 3)
    made = encoded_clips(tmp_path, 2, drawings(), animations(), vae)
    assert len(made) == 6
    assert made.latents.shape == (6, FRAMES, 4, 8, 8) and made.conditions.shape == (6, 4, 8, 8)
    first = made.pictures[:1].float() / 127.5 - 1.0
    assert torch.allclose(made.latents[0, 0].float(), vae.encode(first)[0], atol=2e-3)  # scaled
    level = float(made.numbers[0, 2])
    apart = (made.conditions[0].float() - vae.encode_unscaled(first)[0]).abs().mean()
    assert 0.0 < apart < 20 * level  # not scaled, and noisy
    again = encoded_clips(tmp_path, 2, drawings(), animations(), VAE(SPEC))  # an untrained one: nothing is encoded anew
    assert torch.equal(again.latents, made.latents) and torch.equal(again.numbers, made.numbers)


def test_frames_for_an_autoencoder() -> None:
    frames = random_frames(np.random.default_rng(0), 5, 4, drawings(), animations())
    assert frames.shape == (5, 4, 3, 64, 64)
    assert float(frames.min()) >= -1.0 and float(frames.max()) <= 1.0 and float(frames.std()) > 0.1
