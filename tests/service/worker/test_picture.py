"""Pictures: what each task begins from, and when its previews are due."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.families.text_to_image import TextToImageModel
from service.jobs.job import ImageToImage, Inpainting, PictureRequest
from service.worker.input import NO_INPUTS, Inputs
from service.worker.loaded import LoadedModel
from service.worker.picture import Picture
from service.worker.runner import Runner
from tests.support.rig import a_picture, denoised, make_request, make_upscaling, pixels_of

SAME = make_request(num_inference_steps=4).model_dump(exclude={"task"})
INPUT = Inputs(a_picture())
HALF = np.zeros((32, 32), np.uint8)
HALF[:, 16:] = 255


def img2img(strength: float) -> ImageToImage:
    return ImageToImage(**SAME, image="0" * 64, strength=strength)


def inpainting(strength: float = 1.0) -> Inpainting:
    return Inpainting(**SAME, image="0" * 64, mask="0" * 64, strength=strength)


def encoded(loaded: LoadedModel, request: PictureRequest, inputs: Inputs = NO_INPUTS) -> Picture:
    made = Picture(request, request.seed, 0.0, loaded, loaded.strict, inputs)
    Runner().encode([made])
    return made


def test_strength_is_the_share_of_the_steps(loaded: LoadedModel) -> None:
    lines = {strength: encoded(loaded, img2img(strength), INPUT).evaluations for strength in (0.25, 0.5, 1.0)}
    assert lines == {0.25: 1, 0.5: 2, 1.0: 4}


def test_a_picture_from_a_picture_resembles_it_by_strength(loaded: LoadedModel) -> None:
    model = loaded.model
    assert isinstance(model, TextToImageModel)
    far = []
    for strength in (0.25, 1.0):
        made = denoised(loaded, img2img(strength), 7, INPUT)
        again = denoised(loaded, img2img(strength), 7, Inputs(a_picture(3)))
        far.append(float(np.abs(pixels_of(made).astype(int) - pixels_of(again)).mean()))
    assert far[0] > far[1] > 0, "the less strength, the more depends on what it begins from"


def test_inpainting_keeps_what_the_mask_keeps(loaded: LoadedModel) -> None:
    made, other = (denoised(loaded, inpainting(), seed, Inputs(a_picture(), HALF)) for seed in (7, 8))
    assert made.row is not None and other.row is not None and made.row.keep is not None
    half = made.row.state.shape[-1] // 2
    assert torch.allclose(made.row.state[0][..., :half], made.row.keep.latent[..., :half])
    assert not torch.allclose(made.row.state[0][..., half:], other.row.state[0][..., half:])


def test_inpainting_at_full_strength_begins_as_noise(loaded: LoadedModel) -> None:
    whole, part = (encoded(loaded, inpainting(strength), Inputs(a_picture(), HALF)) for strength in (1.0, 0.5))
    assert whole.row is not None and part.row is not None
    assert whole.row.plan.init_alpha == 0 and part.row.plan.init_alpha > 0
    assert (whole.evaluations, part.evaluations) == (4, 2)


def test_an_enlarged_picture_needs_no_encoder(loaded: LoadedModel, upscaler: LoadedModel) -> None:
    request, picture = make_upscaling(), Inputs(a_picture(size=(16, 16)))
    needs, keeps = Picture(request, 7, 0.0, upscaler, upscaler.strict, picture).requirements
    encoder, conditioner = (upscaler.networks[role].identity for role in ("encoder", "conditioner"))
    assert needs == (conditioner,) and encoder in keeps, "the encoder is one network with the decoder"
    needs, _ = Picture(img2img(0.5), 7, 0.0, loaded, loaded.strict, INPUT).requirements
    assert loaded.networks["encoder"].identity in needs


def test_the_small_decoder_where_there_is_one(loaded: LoadedModel) -> None:
    model, fast = loaded.model, make_request(fast_decoder=True)
    assert isinstance(model, TextToImageModel)
    without = denoised(loaded, fast, 7)
    assert without.key.network == "vae" and (pixels_of(without) == pixels_of(denoised(loaded, make_request(), 7))).all()
    small = replace(model, fast_decoder=lambda latents: latents[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3))
    having = replace(loaded, model=small)
    made = denoised(having, fast, 7)
    assert made.key.network == "vae_tiny" and (pixels_of(made) != pixels_of(without)).any()
    assert denoised(having, make_request(), 7).key.network == "vae"


@pytest.mark.parametrize(
    ("steps", "parts", "due"),
    [(4, 0, {}), (4, 1, {2: 0}), (8, 3, {2: 0, 4: 1, 6: 2}), (2, 3, {1: 1}), (1, 3, {})],
)
def test_when_previews_are_due(loaded: LoadedModel, steps: int, parts: int, due: dict[int, int]) -> None:
    made = encoded(loaded, make_request(num_inference_steps=steps, partial_images=parts))
    found = {}
    assert made.row is not None
    for line in range(steps):
        made.row.line = line
        if made.preview_part is not None:
            found[line + 1] = made.preview_part
    assert found == due


def test_another_kind_of_model_is_refused(clip_model: LoadedModel) -> None:
    with pytest.raises(ValueError, match="model 'tiny-xl' does not do text-to-image"):
        Picture(make_request(), 7, 0.0, clip_model, clip_model.strict)
