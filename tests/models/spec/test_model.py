"""Published configuration files to specs: what is read, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.spec.model import ModelSpec, find_models
from models.spec.unet import UNetSpec, read_unet_spec
from models.spec.vae import VAESpec, read_vae_spec

UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64, 96],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 3],
    "attention_head_dim": [2, 4, 6],
    "cross_attention_dim": 48,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
    "use_linear_projection": True,
}
VAE = {"_class_name": "AutoencoderKL", "block_out_channels": [8, 16, 16], "norm_num_groups": 4, "sample_size": 64}
REFUSED_BY_UNET = {
    "act_fn": "gelu",
    "use_linear_projection": False,
    "center_input_sample": True,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "addition_embed_type": "image",
    "class_embed_type": "timestep",
    "num_class_embeds": 10,
    "resnet_time_scale_shift": "scale_shift",
    "time_embedding_type": "fourier",
    "dual_cross_attention": True,
    "only_cross_attention": True,
    "mid_block_type": "UNetMidBlock2D",
    "encoder_hid_dim": 32,
    "reverse_transformer_layers_per_block": [3, 2, 1],
    "downsample_padding": 0,
    "mid_block_scale_factor": 2,
    "attention_type": "gated",
    "cross_attention_norm": "layer_norm",
    "time_embedding_act_fn": "gelu",
    "timestep_post_act": "silu",
    "time_cond_proj_dim": 64,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}


def write_model(folder: Path, card: dict[str, Any] | None = None, **index: Any) -> Path:
    """The JSON files of a model folder, without weights."""
    files = {
        "model_index.json": {"_class_name": "StableDiffusionXLPipeline", **index},
        "unet/config.json": UNET,
        "vae/config.json": VAE,
        "scheduler/scheduler_config.json": {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 2},
    }
    if card is not None:
        files["darkroom.json"] = card
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def test_unet_config_is_read() -> None:
    assert UNetSpec.from_config(UNET) == UNetSpec(
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 96),
        layers_per_block=2,
        transformer_depth=(0, 2, 3),
        heads=(2, 4, 6),
        context_dim=48,
        vector_dim=80,
        time_id_dim=8,
    )


def test_one_number_stands_for_every_level() -> None:
    config = {**UNET, "transformer_layers_per_block": 2, "attention_head_dim": 4, "norm_eps": 1e-3}
    spec = UNetSpec.from_config({**config, "norm_num_groups": 8})
    assert (spec.transformer_depth, spec.heads) == ((0, 2, 2), (4, 4, 4))
    assert (spec.norm_num_groups, spec.norm_eps) == (8, 1e-3)


@pytest.mark.parametrize(("key", "value"), REFUSED_BY_UNET.items(), ids=list(REFUSED_BY_UNET))
def test_unet_config_is_refused_by_the_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        UNetSpec.from_config({**UNET, key: value})


def test_a_lowest_level_without_attention_is_refused() -> None:
    types = {
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    }
    with pytest.raises(ValueError, match="down_block_types"):
        UNetSpec.from_config({**UNET, **types})


def test_vae_config_is_read() -> None:
    spec = VAESpec.from_config({**VAE, "scaling_factor": 0.13025, "shift_factor": None})
    assert spec == VAESpec(block_out_channels=(8, 16, 16), norm_num_groups=4, scaling_factor=0.13025)
    assert spec.downscale == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [("act_fn", "relu"), ("latents_mean", [0.0] * 4), ("latents_std", [1.0] * 4), ("shift_factor", 0.1)],
)
def test_vae_config_is_refused_by_the_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        VAESpec.from_config({**VAE, key: value})


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


def test_another_pipeline_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, _class_name="FluxPipeline")
    with pytest.raises(ValueError, match="FluxPipeline"):
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
