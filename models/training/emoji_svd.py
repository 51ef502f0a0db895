"""Make ``emoji-svd``, the shipped image-to-video model: motion, autoencoder, UNet with temporal layers, folder."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from models.spec.unet import UNetSpec
from models.spec.vae import TemporalVAESpec
from models.temporal_decoder import TemporalDecoderVAE
from models.training import artwork, temporal_autoencoder, video
from models.training.animations import ANIMATIONS, render_animations
from models.training.artwork import download, render
from models.training.clips import encoded_clips
from models.training.profile import SMALL, Profile
from models.training.temporal_autoencoder import train_temporal_autoencoder
from models.training.video import (
    AVERAGED,
    COLOUR_MEAN,
    COLOUR_STD,
    MIX_SHIFT,
    SCHEDULER_CONFIG,
    STAGES,
    UNET_CONFIG,
    VideoNetworks,
    average,
    new_tower,
    shift_mixers,
    train_video,
)
from models.unet import UNet
from models.weights import load_vae, save_network

SEED = 3
PACKAGES = (*artwork.PACKAGES, *ANIMATIONS)
STYLES = ("3d", "noto", "twemoji", "flat")
"""Drawings that are set in motion."""
PARTS = 60
"""Times 256 clips."""
SERVING = {"steps": 20, "guidance": 2.0, "sizes": [[64, 64]]}


def train_emoji_svd(work: Path, image_model: Path, out: Path, profile: Profile = SMALL) -> None:
    """Train everything, resuming what was begun in ``work``, and write the model folder ``out``.

    Args:
        image_model: the folder of emoji-xl, whose latent space this model shares.
    """
    download(work / "artwork", PACKAGES)
    drawings, animations = render(work / "artwork"), render_animations(work / "artwork")
    with torch.device(profile.device):
        image_vae = load_vae(image_model).to(profile.device)
        recipe, batch = profile.recipe(temporal_autoencoder.RECIPE), profile.batch * temporal_autoencoder.CLIPS
        checkpoint = work / "temporal-autoencoder.pt"
        vae = train_temporal_autoencoder(drawings, animations, image_vae, checkpoint, recipe, batch)
        moving = drawings if profile.everything else drawings.select(styles=STYLES)
        clips = encoded_clips(work / "clips", profile.steps * PARTS, moving, animations, image_vae)
        stages = [new_networks()]
        for number, stage in enumerate(STAGES, 1):
            stage, checkpoint = replace(stage, recipe=profile.recipe(stage.recipe)), work / f"video-{number}.pt"
            begun = copy.deepcopy(stages[-1]).requires_grad_(True)
            stages.append(train_video(clips, begun, checkpoint, stage, profile.batch * video.BATCH))
    networks = average([stages[number] for number in AVERAGED])
    shift_mixers(networks.unet, MIX_SHIFT)
    export(networks, vae, out)


def new_networks() -> VideoNetworks:
    """An untrained UNet and vision tower."""
    tower = new_tower(SEED)
    return VideoNetworks(UNet(UNetSpec.from_config(UNET_CONFIG)), tower)


def export(networks: VideoNetworks, vae: TemporalDecoderVAE, out: Path) -> None:
    """Write a diffusers SVD folder."""
    out.mkdir(parents=True, exist_ok=True)
    save_network(out / "unet", UNET_CONFIG, networks.unet.state_dict(), torch.float16)
    save_network(out / "vae", vae_config(vae.spec), vae.state_dict(), torch.float16)
    networks.tower.save_pretrained(out / "image_encoder")
    colours = {"image_mean": COLOUR_MEAN, "image_std": COLOUR_STD}
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}, "crop_size": 224}
    index = {
        "_class_name": "StableVideoDiffusionPipeline",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "scheduler": ["diffusers", SCHEDULER_CONFIG["_class_name"]],
        "unet": ["diffusers", UNET_CONFIG["_class_name"]],
        "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
    }
    for name, content in (
        ("feature_extractor/preprocessor_config.json", {**processor, **colours}),
        ("scheduler/scheduler_config.json", SCHEDULER_CONFIG),
        ("darkroom.json", SERVING),
        ("model_index.json", index),
    ):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def vae_config(spec: TemporalVAESpec) -> dict[str, object]:
    """``vae/config.json`` as it is published."""
    names = ("in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block")
    numbers = {name: value for name, value in asdict(spec).items() if name in names}
    return {
        "_class_name": "AutoencoderKLTemporalDecoder",
        "down_block_types": ["DownEncoderBlock2D"] * len(spec.block_out_channels),
        "sample_size": 64,
        **numbers,
        "scaling_factor": spec.scaling_factor,
        "force_upcast": spec.force_upcast,
    }
