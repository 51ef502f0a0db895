"""Upscaling against the published pipeline, which draws its noises in the same order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LDMSuperResolutionPipeline, StableDiffusionUpscalePipeline
from PIL import Image
from torch import Tensor

from models.families import text_to_image, upscaling
from models.families.row import Row, advance
from models.families.text_to_image import TextToImageModel
from models.guidance import Guidance
from models.inspection import inspect
from models.plan import make_plan
from tests.support.pipelines import SEED, Made, a_picture, assert_different, assert_same, quiet
from tests.support.tiny_towers import write_tiny_ldm_upscaler, write_tiny_upscaler

PROMPT, NEGATIVE = "a red cat", "a dog"
STEPS, NOISE_LEVEL = 4, 20
WIDTH, HEIGHT = 24, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "upscaler"
    write_tiny_upscaler(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> TextToImageModel:
    return text_to_image.load(folder)


def started(model: TextToImageModel, picture: Tensor, noise_level: int = NOISE_LEVEL) -> Row:
    plan = make_plan(model.schedule, model.spec.solver, STEPS, Guidance(4.0))
    conditions = text_to_image.prepare(model, PROMPT, NEGATIVE, True, WIDTH, HEIGHT)
    return upscaling.start_row(model, plan, conditions, SEED, picture, noise_level)


def a_crop() -> Tensor:
    _, pixels = a_picture()
    return pixels[:, :HEIGHT, :WIDTH]


def test_it_is_the_published_pipeline(folder: Path, model: TextToImageModel) -> None:
    pipeline = quiet(StableDiffusionUpscalePipeline.from_pretrained(folder))

    def published(picture: Tensor, noise_level: int) -> Made:
        latents: list[Tensor] = []
        result = pipeline(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            image=(picture[None] + 1.0) / 2.0,
            noise_level=noise_level,
            num_inference_steps=STEPS,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(SEED),
            output_type="np",
            callback=lambda _step, _time, latent: latents.append(latent[0]),
        )
        return Made(latents[-1], (np.asarray(result.images[0]) * 255).round().astype(np.uint8))

    row = started(model, a_crop())
    while not row.finished:
        advance(model.denoisers, [row])
    ours = Made(row.state[0], text_to_image.decode(model.decoder, [row])[0])
    assert ours.pixels.shape == (4 * HEIGHT, 4 * WIDTH, 3)
    assert_same(ours, published(a_crop(), NOISE_LEVEL))
    assert_different(ours, published(a_crop(), 0))
    assert_different(ours, published(-a_crop(), NOISE_LEVEL))


@pytest.fixture(scope="module")
def ldm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "ldm-upscaler"
    write_tiny_ldm_upscaler(folder)
    return folder


def test_that_of_latent_diffusion_is_the_published_pipeline(ldm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is given a picture as it is here, sides being multiples of 32, and reads no prompt."""
    pipeline = quiet(LDMSuperResolutionPipeline.from_pretrained(ldm_folder))
    model, side, latents = text_to_image.load(ldm_folder), 32, []
    decode = pipeline.vqvae.decode
    monkeypatch.setattr(pipeline.vqvae, "decode", lambda z: latents.append(z[0]) or decode(z))
    image, pixels = a_picture()
    image, pixels = image.crop((0, 0, side, side)), pixels[:, :side, :side]

    def published(picture: Image.Image) -> Made:
        generator = torch.Generator().manual_seed(SEED)
        result = pipeline(picture, num_inference_steps=STEPS, generator=generator, output_type="np")
        return Made(latents[-1], (np.asarray(result.images[0]) * 255).round().astype(np.uint8))

    def made(prompt: str, seed: int = SEED) -> Made:
        plan = make_plan(model.schedule, model.spec.solver, STEPS, Guidance(model.spec.guidance))
        conditions = text_to_image.prepare(model, prompt, "", False, side, side)
        row = upscaling.start_row(model, plan, conditions, seed, pixels, 0)
        while not row.finished:
            advance(model.denoisers, [row])
        return Made(row.state[0], text_to_image.decode(model.decoder, [row])[0])

    ours = made("")
    assert ours.pixels.shape == (4 * side, 4 * side, 3) and ours.pixels.std() > 5
    assert_same(ours, published(image))
    assert torch.equal(made(PROMPT).latent, ours.latent)
    assert_different(ours, published(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    assert_different(ours, made("", SEED + 1))


def test_that_of_latent_diffusion_makes_rows_that_share_an_evaluation(ldm_folder: Path) -> None:
    model = text_to_image.load(ldm_folder)
    plan = make_plan(model.schedule, model.spec.solver, STEPS, Guidance(1.0))
    conditions = text_to_image.prepare(model, PROMPT, NEGATIVE, True, WIDTH, HEIGHT)

    def begun(seed: int) -> Row:
        return upscaling.start_row(model, plan, conditions, seed, a_crop(), 0)

    together, alone = [begun(1), begun(2)], begun(2)
    while not alone.finished:
        advance(model.denoisers, together, padded_lanes=2)
        advance(model.denoisers, [alone], padded_lanes=2)
    assert torch.equal(together[1].state, alone.state) and not torch.equal(together[0].state, alone.state)
    with pytest.raises(ValueError, match="noise_level is 1, expected 0 to 0"):
        upscaling.start_row(model, plan, conditions, 1, a_crop(), 1)


def test_sides_are_filled_up_by_repeating_the_edge(model: TextToImageModel) -> None:
    picture = a_crop()[:, :-3, :-7]
    filled = torch.cat([picture, picture[:, -1:].expand(-1, 3, -1)], dim=1)
    filled = torch.cat([filled, filled[:, :, -1:].expand(-1, -1, 7)], dim=2)
    ours, expected = started(model, picture), started(model, filled)
    assert ours.state.shape == (1, 4, HEIGHT, WIDTH) and torch.equal(ours.state, expected.state)
    for name, condition in expected.conditions.items():
        assert condition.concat is not None and condition.vector.tolist() == [NOISE_LEVEL]
        assert torch.equal(ours.conditions[name].concat, condition.concat)  # type: ignore[arg-type]


def test_what_it_does_not_take(model: TextToImageModel, sdxl_folder: Path) -> None:
    with pytest.raises(ValueError, match="noise_level is 351, expected 0 to 350"):
        started(model, a_crop(), 351)
    with pytest.raises(ValueError, match=r"picture has shape \[1, 16, 24\], expected \[3, h, w\]"):
        started(model, a_crop()[:1])
    with pytest.raises(ValueError, match="model 'tiny-xl' is no upscaler"):
        started(text_to_image.load(sdxl_folder), a_crop())
    plan = make_plan(model.schedule, model.spec.solver, STEPS, Guidance(1.0))
    with pytest.raises(ValueError, match="model 'upscaler' needs a low-resolution picture"):
        text_to_image.start_row(model, plan, {}, SEED, (WIDTH, HEIGHT), a_crop())


def test_the_folder_of_latent_diffusion_is_whole(ldm_folder: Path) -> None:
    found = inspect(ldm_folder)
    assert found.whole and found.kind == "LDMSuperResolutionPipeline"
    assert {part.name for part in found.parts} == {"unet", "vqvae"}


def test_its_folder_is_whole(folder: Path) -> None:
    found = inspect(folder)
    assert found.whole and found.kind == "StableDiffusionUpscalePipeline"
    assert {part.name for part in found.parts} == {"text_encoder", "unet", "vae"}
