"""The making of the video model, from drawings to a folder that diffusers animates with, in seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from models.families.image_to_video import Motion, decode, guidance, load, start_row
from models.families.row import advance
from models.plan import make_plan
from models.spec.model import ModelSpec
from models.spec.vae import TemporalVAESpec, VAESpec
from models.training import clips, emoji_svd, temporal_autoencoder, video
from models.training.emoji_svd import SERVING, train_emoji_svd
from models.training.emoji_xl import vae_config
from models.training.loop import Recipe
from models.vae import VAE
from models.weights import save_network
from tests.models.training.moving_art import animations, disc, drawings

RECIPE = Recipe(steps=2, peak_lr=1e-3, final_lr=1e-3, warmup=1, ema=0.5, save_every_s=999.0)
STEPS = 2


@pytest.fixture(scope="module", autouse=True)
def small_world() -> Iterator[None]:
    """Three drawings, two loops, narrow networks, two steps each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji_svd, "download", lambda _folder, _packages: None)
        patch.setattr(emoji_svd, "render", lambda _folder: drawings())
        patch.setattr(emoji_svd, "render_animations", lambda _folder: animations())
        patch.setattr(emoji_svd, "STYLES", ("3d",))
        patch.setattr(emoji_svd, "PARTS", 1)
        patch.setattr(emoji_svd, "SERVING", {**SERVING, "guidance": 3.0})
        patch.setattr(clips, "PART", 2)
        narrow = TemporalVAESpec(
            latent_channels=8,
            block_out_channels=(64, 32, 32, 32),
            layers_per_block=1,
            norm_num_groups=32,
            force_upcast=False,
        )
        patch.setattr(temporal_autoencoder, "SPEC", narrow)
        patch.setattr(temporal_autoencoder, "CLIPS", 1)
        for module in (temporal_autoencoder, video):
            real = module.train
            patch.setattr(module, "train", lambda n, loss, _recipe, path, real=real: real(n, loss, RECIPE, path))
        patch.setattr(video, "VISION_CONFIG", {**video.VISION_CONFIG, "hidden_size": 16, "num_hidden_layers": 1})
        thin = {**video.UNET_CONFIG, "block_out_channels": [32, 64], "num_attention_heads": [1, 2]}
        patch.setattr(emoji_svd, "UNET_CONFIG", thin)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("svd")
    spec = VAESpec(latent_channels=8, block_out_channels=(4, 4, 4, 8), layers_per_block=1, norm_num_groups=1)
    torch.manual_seed(0)
    vae = VAE(replace(spec, force_upcast=False))
    save_network(work / "image" / "vae", vae_config(vae.spec), vae.state_dict(), torch.float32)
    train_emoji_svd(work, work / "image", work / "emoji-svd")
    return work / "emoji-svd"


def test_the_folder_says_what_it_is(folder: Path) -> None:
    spec = ModelSpec.read(folder)
    assert (spec.system.task, spec.frames, spec.steps, spec.guidance) == ("image-to-video", 8, SERVING["steps"], 3.0)
    assert spec.sizes == ((64, 64),)
    assert json.loads((folder / "vae" / "config.json").read_text())["_class_name"] == "AutoencoderKLTemporalDecoder"


def test_diffusers_makes_the_same_clip(folder: Path) -> None:
    model = load(folder)
    picture = disc(31, 31, (200, 60, 60))[..., :3]
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 127.5 - 1.0
    plan = make_plan(model.schedule, model.spec.solver, STEPS, guidance(model))

    def ours(motion: Motion) -> np.ndarray:
        row = start_row(model, plan, pixels, motion, 5)
        while not row.finished:
            advance(model.denoisers, [row])
        return decode(model, row).astype(int)

    pipeline = StableVideoDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline(
        Image.fromarray(picture),
        width=64,
        height=64,
        num_frames=8,
        num_inference_steps=STEPS,
        max_guidance_scale=3.0,
        motion_bucket_id=90,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
        decode_chunk_size=8,
    ).frames[0]
    theirs = (np.asarray(frames) * 255).round().astype(int)
    assert np.abs(ours(Motion(bucket=90)) - theirs).max() <= 2
    assert np.abs(ours(Motion(bucket=10, noise_aug=1.0)) - theirs).max() > 2


def test_the_weights_are_the_mean_of_stages_with_mixers_moved(folder: Path) -> None:
    stages = [torch.load(folder.parent / f"video-{n}.pt", weights_only=True)["average"] for n in video.AVERAGED]
    found = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    name = next(name for name in found if stages[0][f"unet.{name}"].ndim > 1)
    mean = sum(stage[f"unet.{name}"] for stage in stages) / len(stages)
    assert torch.equal(found[name], mean.half()) and not torch.equal(found[name], stages[-1][f"unet.{name}"].half())
    mixer = next(name for name in found if name.endswith("mix_factor"))
    mean = sum(stage[f"unet.{mixer}"] for stage in stages) / len(stages)
    assert torch.equal(found[mixer], (mean + video.MIX_SHIFT).half())
