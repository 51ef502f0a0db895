"""Which layout a single file has, and what in it belongs to whom."""

from __future__ import annotations

import pytest

from models.checkpoints.single_file import LAYOUTS, UNET, VAE, detect
from models.checkpoints.systems import systems
from tests.support.single_files import LAYOUT, key_list

ENCODERS = {
    "sd1": {"text_encoder": "clip-l"},
    "sd2": {"text_encoder": "open-clip-h"},
    "x4-upscaler": {"text_encoder": "open-clip-h"},
    "sdxl": {"text_encoder": "clip-l", "text_encoder_2": "open-clip-bigg"},
    "sdxl-refiner": {"text_encoder_2": "open-clip-bigg"},
    "svd": {"image_encoder": "open-clip-h-vision"},
    "sd3": {"text_encoder": "clip-l", "text_encoder_2": "clip-bigg", "text_encoder_3": "t5-xxl"},
}
OTHERS = {
    "svd": {**key_list("unet-svd", UNET), **key_list("vae-svd")},
    "sd3": key_list("mmdit-sd3-medium", UNET),
    "x4-upscaler": {**key_list("unet-x4-upscaler", UNET), **key_list("vae-x4-upscaler", VAE)},
}


def published_keys(layout: str) -> list[str]:
    """All keys of a published file of a layout."""
    keys = dict(OTHERS.get(layout) or {**key_list(f"unet-{layout}", UNET), **key_list("vae-kl", VAE)})
    for part, name in ENCODERS[layout].items():
        keys |= key_list(name, LAYOUT[layout].scopes[part][0])
    return list(keys)


@pytest.mark.parametrize("layout", ENCODERS)
def test_the_published_layouts_are_told_apart(layout: str) -> None:
    keys = published_keys(layout)
    assert detect(keys) is LAYOUT[layout]
    assert not LAYOUT[layout].strangers(keys)
    parts = [LAYOUT[layout].part_keys(part, keys) for part in LAYOUT[layout].scopes]
    assert sorted(key for part in parts for key in part) == sorted(keys)
    assert LAYOUT[layout].strangers([*keys, "lora.x", "model.other"]) == ["lora.x", "model.other"]


def test_every_system_has_a_layout_and_every_layout_but_the_last_a_system() -> None:
    assert {system.layout for system in systems().values()} == {layout.name for layout in LAYOUTS} - {
        "latent-diffusion"
    }


@pytest.mark.parametrize(
    ("layout", "key", "ignored"),
    [
        ("sd1", "model_ema.decay", True),
        ("sd1", "cond_stage_model.transformer.text_model.embeddings.position_ids", True),
        ("sd1", "sqrt_one_minus_alphas_cumprod", True),
        ("sd1", "log_one_minus_alphas_cumprod", True),
        ("sd1", "model.diffusion_model.betas", False),
        ("sd2", "cond_stage_model.model.text_projection", True),
        ("sdxl", "conditioner.embedders.1.model.text_projection", False),
        ("x4-upscaler", "low_scale_model.sqrt_alphas_cumprod", True),
        ("sd2", "low_scale_model.sqrt_alphas_cumprod", False),
        ("svd", "conditioner.embedders.0.open_clip.model.ln_final.weight", True),
        ("svd", "conditioner.embedders.0.open_clip.model.visual.ln_pre.weight", False),
        ("svd", "first_stage_model.encoder.conv_in.weight", True),
        ("svd", "first_stage_model.decoder.conv_in.weight", False),
        ("svd", "conditioner.embedders.3.encoder.decoder.conv_in.weight", True),
        ("svd", "conditioner.embedders.3.encoder.encoder.conv_in.weight", False),
        ("latent-diffusion", "cond_stage_model.embedding.weight", True),
    ],
)
def test_what_is_passed_over(layout: str, key: str, ignored: bool) -> None:
    assert LAYOUT[layout].is_ignored(key) == ignored


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ValueError, match=r"keys such as \['fc.bias'\] are of no layout known here; known: sd3, svd, "):
        detect(["fc.bias"])
