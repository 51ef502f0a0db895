"""Networks that need more than a prompt: SDXL's refiner, behind the base and on its own, and inpainting networks that
take mask and masked picture, against the published pipelines."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor

from models.families import text_to_image
from models.families.row import advance
from models.guidance import Guidance
from models.plan import make_plan
from models.spec.model import REFINER, ModelSpec
from tests.support.pipelines import SEED, SIZE, Made, a_picture, assert_different, assert_same, published, quiet
from tests.support.tiny_towers import SD_UNET, write_tiny_refiner, write_tiny_sd
from tests.support.tiny_xl import randomise

PROMPT, NEGATIVE = "a red cat", "a dog"
STEPS = 6
SIZED = {"width": SIZE[0], "height": SIZE[1]}


@pytest.fixture(scope="module")
def models(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose card names the refiner beside it, and a base with itself behind it."""
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(sdxl_folder, root / "base")
    (root / "base" / "darkroom.json").write_text(json.dumps({"refiner": "refiner", "refiner_at": 0.5}))
    write_tiny_refiner(root / "refiner")
    shutil.copytree(root / "base" / "vae", root / "refiner" / "vae", dirs_exist_ok=True)
    return root


def made(model: text_to_image.TextToImageModel, refiner: tuple[str, float] | None, guidance: float = 4.0) -> Made:
    plan = make_plan(model.schedule, "euler", STEPS, Guidance(guidance), refiner=refiner)
    conditions = text_to_image.prepare(model, PROMPT, NEGATIVE, guidance > 1.0, *SIZE)
    row = text_to_image.start_row(model, plan, conditions, SEED, SIZE)
    while not row.finished:
        advance(model.denoisers, [row])
    return Made(row.state[0], text_to_image.decode(model.decoder, [row])[0])


def test_the_ensemble_is_the_published_pair(models: Path) -> None:
    model = text_to_image.load(models / "base")
    assert model.spec.hand_over == (REFINER, 0.5) and set(model.denoisers) == {"unet", REFINER}
    base = quiet(StableDiffusionXLPipeline.from_pretrained(models / "base", add_watermarker=False))
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(models / "refiner", add_watermarker=False)
    asked = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": 4.0}
    latents = base(
        denoising_end=0.5, output_type="latent", generator=torch.Generator().manual_seed(SEED), **asked, **SIZED
    ).images
    theirs = published(refiner, image=latents, denoising_start=0.5, **asked)
    assert_same(made(model, model.spec.hand_over), theirs)
    assert_different(made(model, None), theirs)
    assert_different(made(model, (REFINER, 0.8)), theirs)


def test_equal_networks_on_a_split_plan_equal_the_single_run(models: Path) -> None:
    model = text_to_image.load(models / "base")
    twin = text_to_image.TextToImageModel(
        **{**vars(model), "denoisers": {"unet": model.denoisers["unet"], REFINER: model.denoisers["unet"]}}
        | {"refiner": model.conditioner}
    )
    assert torch.equal(made(twin, (REFINER, 0.5)).latent, made(twin, None).latent)
    assert torch.equal(made(twin, (REFINER, 0.5), 1.0).latent, made(twin, None, 1.0).latent)


def test_the_refiner_alone_starts_from_a_picture(models: Path) -> None:
    model, (image, pixels) = text_to_image.load(models / "refiner"), a_picture()
    assert model.spec.needs == "picture" and model.spec.hand_over is None
    options = {"from_picture": True, "strength": 0.5}
    plan = make_plan(model.schedule, "euler", STEPS, Guidance(4.0), **options)
    conditions = text_to_image.prepare(model, PROMPT, NEGATIVE, True, *SIZE)
    row = text_to_image.start_row(model, plan, conditions, SEED, SIZE, pixels)
    while not row.finished:
        advance(model.denoisers, [row])
    theirs = published(
        StableDiffusionXLImg2ImgPipeline.from_pretrained(models / "refiner", add_watermarker=False),
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        image=image,
        strength=0.5,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
    )
    assert_same(Made(row.state[0], text_to_image.decode(model.decoder, [row])[0]), theirs)
    with pytest.raises(ValueError, match="'refiner' needs a picture"):
        text_to_image.start_row(model, plan, conditions, SEED, SIZE)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"refiner": "../refiner"}, "expected the name of a folder beside base"),
        ({"refiner": ".."}, "expected the name of a folder"),
        ({"refiner": 7}, "expected the name of a folder"),
        ({"refiner": "gone"}, "'gone' is not a model folder beside base"),
        ({"refiner": "base"}, "'base' of 'base' is no refiner"),
        ({"steps": []}, "darkroom.json"),
    ],
)
def test_a_card_that_makes_no_sense(models: Path, tmp_path: Path, card: dict[str, object], message: str) -> None:
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    (tmp_path / "base" / "darkroom.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=message):
        text_to_image.load(tmp_path / "base")


def test_a_refiner_of_other_latents_is_refused(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "refiner" / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "scaling_factor": 0.5}))
    with pytest.raises(ValueError, match="'refiner' has other latents than 'base'"):
        text_to_image.load(tmp_path / "base")


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion 1 whose UNet takes nine channels."""
    folder = tmp_path_factory.mktemp("models") / "inpainting"
    write_tiny_sd(folder)
    shutil.rmtree(folder / "unet")
    randomise(UNet2DConditionModel(**{**SD_UNET, "in_channels": 9}), 3).save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionInpaintPipeline"}))
    return folder


def test_an_inpainting_network_is_the_published_pipeline(inpainting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published pipeline draws its noises in another order than ours, so both encode without noise, and ours is
    given the first x of theirs."""
    model, (image, pixels) = text_to_image.load(inpainting), a_picture()
    assert model.spec.needs == "picture and mask"
    encoder = model.encoder
    assert encoder is not None
    model = text_to_image.TextToImageModel(**{**vars(model), "encoder": lambda p, noise: encoder(p, 0.0 * noise)})
    mask = torch.zeros(1, *pixels.shape[1:])
    mask[:, :, 20:] = 1.0
    plan = make_plan(model.schedule, model.spec.solver, STEPS, Guidance(4.0))
    conditions = text_to_image.prepare(model, PROMPT, NEGATIVE, True, *SIZE)
    row = text_to_image.start_row(model, plan, conditions, SEED, SIZE, pixels, mask)
    assert row.conditions["negative"].concat is not None and row.keep is None
    first = (row.state[0] / plan.init_sigma)[None].clone()
    while not row.finished:
        advance(model.denoisers, [row])
    ours = Made(row.state[0], text_to_image.decode(model.decoder, [row])[0])
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(inpainting, safety_checker=None)
    monkeypatch.setattr(pipeline, "_encode_vae_image", partial(_mode, pipeline))

    def run(flipped: bool) -> Made:
        shown = 1.0 - mask if flipped else mask
        return published(
            pipeline,
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            image=image,
            mask_image=Image.fromarray((shown[0].numpy() * 255).astype(np.uint8)),
            latents=first,
            num_inference_steps=STEPS,
            guidance_scale=4.0,
            **SIZED,
        )

    assert_same(ours, run(flipped=False))
    assert_different(ours, run(flipped=True))
    with pytest.raises(ValueError, match="'inpainting' needs a picture and mask"):
        text_to_image.start_row(model, plan, conditions, SEED, SIZE, pixels)


def _mode(pipeline: StableDiffusionInpaintPipeline, image: Tensor, generator: torch.Generator) -> Tensor:
    mode: Tensor = pipeline.vae.encode(image).latent_dist.mode()
    return mode * pipeline.vae.config.scaling_factor


def test_other_channels_are_refused(inpainting: Path, tmp_path: Path) -> None:
    shutil.copytree(inpainting, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "in_channels": 7}))
    with pytest.raises(ValueError, match=r"unet/config.json: config in_channels=7 is not served here, expected 4 or 9"):
        ModelSpec.read(tmp_path)
