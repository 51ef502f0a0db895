"""Published configuration files to specs: what is read, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.spec.model import ModelSpec, UpscalingSpec, find_models
from models.spec.unet import UNetSpec, read_unet_spec
from models.spec.vae import read_vae_spec
from tests.support.published_unets import LDM_SUPER_RESOLUTION
from tests.support.published_unets import SMALL_SDXL as UNET
from tests.support.published_unets import UPSCALER as UPSCALER_UNET

VAE = {"_class_name": "AutoencoderKL", "block_out_channels": [8, 16, 16], "norm_num_groups": 4, "sample_size": 64}


def write_model(
    folder: Path, card: dict[str, Any] | None = None, others: dict[str, dict[str, Any]] | None = None, **index: Any
) -> Path:
    """The JSON files of a model folder, without weights."""
    files = {
        "model_index.json": {"_class_name": "StableDiffusionXLPipeline", **index},
        "unet/config.json": UNET,
        "vae/config.json": VAE,
        "scheduler/scheduler_config.json": {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 2},
    }
    if card is not None:
        files["darkroom.json"] = card
    files |= others or {}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def test_a_folder_without_a_card_gives_its_native_size_and_solver(tmp_path: Path) -> None:
    spec = ModelSpec.read(write_model(tmp_path / "plain"))
    assert (spec.name, spec.sizes, spec.solver) == ("plain", ((64, 64),), "dpm++2m")
    assert spec.scheduler_config["solver_order"] == 2
    assert spec.zeros_for_empty_prompt


def test_a_card_overrides_the_defaults(tmp_path: Path) -> None:
    card = {"sizes": [[48, 64], [64, 48]], "steps": 12, "guidance": 3.5, "solver": "ddim"}
    spec = ModelSpec.read(write_model(tmp_path, card, force_zeros_for_empty_prompt=False))
    assert (spec.sizes, spec.steps, spec.guidance, spec.solver) == (((48, 64), (64, 48)), 12, 3.5, "ddim")
    assert not spec.zeros_for_empty_prompt


def test_a_card_asks_for_8_bits(tmp_path: Path) -> None:
    card = {"eight_bits": {"unet": "fp8", "vae": "int8"}}
    assert ModelSpec.read(write_model(tmp_path / "eight", card)).eight_bits == {"unet": "fp8", "vae": "int8"}
    assert ModelSpec.read(write_model(tmp_path / "plain", {"steps": 4})).eight_bits == {}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"text_encoder": "int8"}, "eight_bits of 'text_encoder', expected 'unet' or 'vae'"),
        ({"unet": "int4"}, "eight_bits of 'unet' is 'int4', expected int8 or fp8"),
        ({"unet": ["fp8"]}, "expected int8 or fp8"),
        ("fp8", "darkroom.json makes no sense"),
    ],
)
def test_a_card_that_asks_for_other_bits_is_refused(tmp_path: Path, asked: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ModelSpec.read(write_model(tmp_path, {"eight_bits": asked}))


@pytest.mark.parametrize("name", ["FluxPipeline", ["StableDiffusionXLPipeline"], None])
def test_another_pipeline_is_refused(tmp_path: Path, name: object) -> None:
    write_model(tmp_path, _class_name=name)
    with pytest.raises(ValueError, match="is not served"):
        ModelSpec.read(tmp_path)


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "vae/config.json"])
@pytest.mark.parametrize(("content", "message"), [(None, "is missing"), ("[]", "JSON object")])
def test_a_missing_or_odd_file_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = write_model(tmp_path) / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        ModelSpec.read(tmp_path)


def test_find_models_finds_the_folders_that_have_an_index(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_model(tmp_path / name)
    (tmp_path / "not-a-model").mkdir()
    found = find_models(tmp_path)
    assert list(found) == ["a", "b"]
    assert found["a"].folder == tmp_path / "a"
    assert read_unet_spec(tmp_path / "a") == UNetSpec.from_config(UNET)
    assert read_vae_spec(tmp_path / "a").downscale == 4


UPSCALER = {
    "unet/config.json": {**UPSCALER_UNET, "sample_size": 128},
    "low_res_scheduler/scheduler_config.json": {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000},
}


def upscaler(folder: Path, **unet: Any) -> ModelSpec:
    others = {**UPSCALER, "unet/config.json": {**UPSCALER["unet/config.json"], **unet}}
    return ModelSpec.read(write_model(folder, others=others, _class_name="StableDiffusionUpscalePipeline"))


def test_an_upscaler(tmp_path: Path) -> None:
    spec = upscaler(tmp_path)
    assert (spec.system.task, spec.needs) == ("upscaling", "low-resolution picture")
    assert spec.sizes == ((512, 512), (2048, 2048)) and (spec.steps, spec.guidance) == (75, 9.0)
    assert spec.upscaling is not None
    assert (spec.upscaling.factor, spec.upscaling.multiple, spec.upscaling.max_noise_level) == (4, 8, 350)
    few = upscaler(tmp_path, num_class_embeds=100).upscaling
    assert few is not None and few.max_noise_level == 99
    assert ModelSpec.read(write_model(tmp_path / "plain")).upscaling is None


LDM_UPSCALER = {
    "unet/config.json": {**LDM_SUPER_RESOLUTION, "sample_size": 64},
    "vqvae/config.json": {"_class_name": "VQModel", "block_out_channels": [8, 16, 16], "num_vq_embeddings": 30},
    "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler", "clip_sample": False},
}


def ldm_upscaler(folder: Path, **vqvae: Any) -> ModelSpec:
    others = {**LDM_UPSCALER, "vqvae/config.json": {**LDM_UPSCALER["vqvae/config.json"], **vqvae}}
    return ModelSpec.read(write_model(folder, others=others, _class_name="LDMSuperResolutionPipeline"))


def test_an_upscaler_of_latent_diffusion(tmp_path: Path) -> None:
    """It is told no noise level, and its prompt, which nothing reads, can guide nothing."""
    spec = ldm_upscaler(tmp_path)
    assert (spec.system.task, spec.needs, spec.solver) == ("upscaling", "low-resolution picture", "ddim")
    assert spec.sizes == ((256, 256), (1024, 1024))
    assert (spec.steps, spec.guidance, spec.max_guidance) == (100, 1.0, 1.0)
    assert spec.upscaling == UpscalingSpec(4, 8, 0, {})
    with pytest.raises(ValueError, match=r"vqvae/config.json: config scaling_factor=0.18215 is not .*, expected 1"):
        ldm_upscaler(tmp_path, scaling_factor=0.18215)
    with pytest.raises(ValueError, match=r"vqvae/config.json: config vq_embed_dim=4, expected latent_channels=3"):
        ldm_upscaler(tmp_path, vq_embed_dim=4)


def test_what_is_no_upscaler(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unet/config.json: config in_channels=8 is not served here, expected 7"):
        upscaler(tmp_path, in_channels=8)
    with pytest.raises(ValueError, match=r"unet/config.json: config num_class_embeds is missing"):
        upscaler(tmp_path, num_class_embeds=None)
    upscaler(tmp_path)
    (tmp_path / "low_res_scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ValueError, match=r"low_res_scheduler/scheduler_config.json is missing"):
        ModelSpec.read(tmp_path)
