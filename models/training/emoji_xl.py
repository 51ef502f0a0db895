"""Make ``emoji-xl``, the shipped text-to-image model, from nothing: artwork, autoencoder, vocabulary, UNet, folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from models.conditioners.sdxl import SDXLConditioner
from models.spec.unet import UNetSpec
from models.spec.vae import VAESpec
from models.tiny_autoencoder import TinyAutoencoder
from models.training import autoencoder, diffusion, tiny_autoencoder
from models.training.artwork import Drawings, download, render
from models.training.autoencoder import SPEC, latent_std, on_white, split, train_autoencoder
from models.training.concepts import CAPTION_STYLES, CONCEPTS, FIRST_CONCEPTS, HELD_OUT, captions
from models.training.diffusion import (
    RECIPE,
    SCENES,
    SCHEDULER_CONFIG,
    SECOND_RECIPE,
    UNET_CONFIG,
    Examples,
    TextToImageNetworks,
    train_diffusion,
)
from models.training.profile import SMALL, Profile
from models.training.text import beside, new_towers, train_tokenizer
from models.training.tiny_autoencoder import tiny_config, train_tiny_autoencoder
from models.unet import UNet
from models.vae import VAE
from models.weights import save_network

SEED = 0
SERVING = {"steps": 20, "guidance": 3.0, "solver": "dpm++2m", "sizes": [[64, 64]]}
"""What ``darkroom.json`` recommends; chosen by eye and by the judge."""


def train_emoji_xl(work: Path, out: Path, profile: Profile = SMALL) -> None:
    """Train everything, resuming what was begun in the folder ``work``, and write the model folder ``out``."""
    download(work / "artwork")
    drawings = render(work / "artwork")
    with torch.device(profile.device):
        vae = trained_autoencoder(drawings, work / "autoencoder.pt", profile)
        batch, tiny_recipe = profile.batch * tiny_autoencoder.BATCH, profile.recipe(tiny_autoencoder.RECIPE)
        tiny = train_tiny_autoencoder(drawings, vae, work / "tiny-autoencoder.pt", tiny_recipe, batch=batch)
        networks = _trained_networks(drawings, vae, work, profile)
    export(networks, vae, tiny, work / "tokenizer", out)


def trained_autoencoder(drawings: Drawings, checkpoint: Path, profile: Profile = SMALL) -> VAE:
    """The trained autoencoder with the scaling factor that gives its latents unit spread."""
    batch = profile.batch * autoencoder.BATCH
    vae = train_autoencoder(drawings, checkpoint, profile.recipe(autoencoder.RECIPE), SPEC, batch)
    factor = 1.0 / latent_std(vae, on_white(split(drawings).training[:1024]))
    scaled = VAE(replace(SPEC, scaling_factor=round(factor, 5)))
    scaled.load_state_dict(vae.state_dict())
    return scaled.eval().requires_grad_(False)


def _trained_networks(drawings: Drawings, vae: VAE, work: Path, profile: Profile) -> TextToImageNetworks:
    """UNet and text towers after both stages."""
    networks = new_networks(new_conditioner(drawings, work / "tokenizer"))
    styles, batch = profile.styles(drawings), profile.batch * diffusion.BATCH
    first = Examples(drawings, FIRST_CONCEPTS, vae, styles=styles)
    networks = train_diffusion(first, networks, work / "diffusion.pt", profile.recipe(RECIPE), batch)
    examples = Examples(drawings, profile.concepts(drawings), vae, HELD_OUT, SCENES, styles=styles)
    recipe = profile.recipe(SECOND_RECIPE)
    return train_diffusion(examples, networks.requires_grad_(True), work / "scenes.pt", recipe, batch)


def new_conditioner(drawings: Drawings, tokenizer_folder: Path) -> SDXLConditioner:
    """Untrained towers over a vocabulary learnt from everything that any model of the family may be told."""
    if (tokenizer_folder / "tokenizer_config.json").exists():  # written last, so the others are whole
        tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    else:
        tokenizer = train_tokenizer(caption_corpus(drawings), tokenizer_folder)
    dim = UNetSpec.from_config(UNET_CONFIG).time_id_dim
    return SDXLConditioner(beside(tokenizer, new_towers(tokenizer, SEED)), dim, zeros_for_empty=True)


def new_networks(conditioner: SDXLConditioner) -> TextToImageNetworks:
    """An untrained UNet beside the conditioner's towers."""
    torch.manual_seed(SEED)
    return TextToImageNetworks(UNet(UNetSpec.from_config(UNET_CONFIG)), conditioner)


def caption_corpus(drawings: Drawings) -> Iterator[str]:
    """Names and keywords of all drawings, the captions of the concepts, and the words of scenes."""
    for name, keywords in zip(drawings.names, drawings.keywords, strict=True):
        yield from (name, name, *(keyword.replace("_", " ") for keyword in keywords))
    for concept in CONCEPTS:
        for style in CAPTION_STYLES:
            yield from captions(concept, style)
    scene = "small large tiny big left right of above below beside on under with and two three four five six many in"
    colours = "red orange yellow green blue purple pink brown black white grey gray light dark background"
    for _ in range(50):
        yield from (scene, colours, " ".join(drawings.styles))


def export(networks: TextToImageNetworks, vae: VAE, tiny: TinyAutoencoder, tokenizer_folder: Path, out: Path) -> None:
    """Write a diffusers SDXL folder."""
    out.mkdir(parents=True, exist_ok=True)
    save_network(out / "unet", UNET_CONFIG, networks.unet.state_dict(), torch.float16)
    save_network(out / "vae", vae_config(vae.spec), vae.state_dict(), torch.float16)
    save_network(out / "vae_tiny", tiny_config(tiny.spec), tiny.state_dict(), torch.float16)
    for n, tower in zip(("", "_2"), networks.conditioner.networks, strict=True):
        tower.clip.save_pretrained(out / f"text_encoder{n}")
        shutil.copytree(tokenizer_folder, out / f"tokenizer{n}", dirs_exist_ok=True)
    _write_json(out / "scheduler" / "scheduler_config.json", SCHEDULER_CONFIG)
    _write_json(out / "darkroom.json", SERVING)
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", SCHEDULER_CONFIG["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(out / "model_index.json", index)


def vae_config(spec: VAESpec) -> dict[str, object]:
    """``vae/config.json`` of an autoencoder with attention in its middle alone."""
    levels = len(spec.block_out_channels)
    numbers = asdict(spec)
    del numbers["attention_levels"]  # published configs say it by the names of their blocks
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "sample_size": 64,
        **numbers,
    }


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
