"""Whole clips against the published pipeline: same weights, picture, seed and settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from torch import Tensor

from models.families import image_to_video
from models.families.image_to_video import Motion
from models.families.row import advance
from models.guidance import Guidance
from models.plan import make_plan
from models.tiling import tiled_decode, tiled_encode
from models.weights import load_temporal_vae
from tests.support.pipelines import SEED, SIZE, Made, a_picture, assert_different, assert_same, published
from tests.support.tiny_towers import write_tiny_svd


@pytest.fixture(scope="module")
def svd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("svd") / "svd"
    write_tiny_svd(folder)
    return folder


def animated(
    model: image_to_video.ImageToVideoModel, picture: Tensor, guidance: Guidance, motion: Motion, chunk: int
) -> Made:
    """Our clip."""
    plan = make_plan(model.schedule, model.spec.solver, 3, guidance)
    row = image_to_video.start_row(model, plan, picture, motion, SEED)
    while not row.finished:
        advance(model.denoisers, [row])
    return Made(row.state[0], image_to_video.decode(model, row, chunk))


@pytest.mark.parametrize("chunk", [3, 2])
def test_stable_video_diffusion(svd_folder: Path, chunk: int) -> None:
    model, (image, pixels) = image_to_video.load(svd_folder), a_picture()
    theirs = published(
        StableVideoDiffusionPipeline.from_pretrained(svd_folder),
        image=image,
        width=SIZE[0],
        height=SIZE[1],
        num_inference_steps=3,
        min_guidance_scale=1.0,
        max_guidance_scale=3.0,
        fps=9,
        motion_bucket_id=80,
        noise_aug_strength=0.1,
        decode_chunk_size=chunk,
    )
    motion, guided = Motion(9, 80, 0.1), image_to_video.guidance(model)
    assert_same(animated(model, pixels, guided, motion, chunk), theirs)
    flat = Guidance(2.0)
    for other in (
        (guided, Motion(9, 81, 0.1)),
        (guided, Motion(8, 80, 0.1)),
        (guided, Motion(9, 80, 0.2)),
        (flat, motion),
    ):
        assert_different(animated(model, pixels, *other, chunk), theirs)


@pytest.mark.parametrize("shape", [(1, 32, 48), (3, 31, 48), (1, 3, 32, 48)])
def test_a_clip_does_not_begin_from_any_tensor(svd_folder: Path, shape: tuple[int, ...]) -> None:
    model = image_to_video.load(svd_folder)
    plan = make_plan(model.schedule, model.spec.solver, 3, image_to_video.guidance(model))
    with pytest.raises(ValueError, match=r"picture has shape \[.*\], expected \[3, H, W\] of multiples of"):
        image_to_video.start_row(model, plan, torch.zeros(shape), Motion(), SEED)


def test_large_clips_are_coded_in_tiles(svd_folder: Path) -> None:
    model, vae = image_to_video.load(svd_folder), load_temporal_vae(svd_folder)
    factor = vae.spec.downscale
    wide = 1024 + 4 * factor
    picture = torch.rand(1, 3, 4 * factor, wide, generator=torch.Generator().manual_seed(1)) * 2.0 - 1.0
    with torch.inference_mode():
        latents = model.encoder(picture)
        assert torch.equal(latents, tiled_encode(vae.encode_unscaled, picture, factor))
        assert float((latents - vae.encode_unscaled(picture)).abs().max()) > 1e-4
        clip = torch.stack([latents, latents.flip(-1)], dim=1)
        decoded = model.decoder(clip, 2)
        assert torch.equal(decoded, tiled_decode(lambda z: vae.decode(z, 2), clip, factor))
        assert float((decoded - vae.decode(clip, 2)).abs().max()) > 1e-4
