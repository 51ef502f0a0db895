"""A random SDXL model folder small enough for a CPU, made by the published classes.

Default initialisation hides mistakes: gains are 1, biases almost 0, and a deep network's output hardly depends on its
input. ``randomise`` redraws every parameter so that signals keep their scale, and norms, biases and text all matter.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizerFast

MAX_TOKENS = 20
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = ["r e", "re d</w>", "c a", "ca t</w>", "d o", "do g</w>"]
UNET = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 64,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 28 + 6 * 8,
    "use_linear_projection": True,
    "norm_num_groups": 8,
}
VAE = {
    "block_out_channels": (16, 24),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 8,
    "scaling_factor": 0.13025,
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def randomise(network: nn.Module, seed: int) -> nn.Module:
    """The same network, every parameter redrawn at a scale that matters."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:  # variance of the output = variance of the input
            noise *= parameter[0].numel() ** -0.5
        elif name.endswith("weight"):  # the gain of a norm
            noise = 1.0 + 0.2 * noise
        else:
            noise *= 0.1
        parameter.data.copy_(noise)
    return network.eval().requires_grad_(False)


def _write_tokenizer(folder: Path, pad_token: str) -> CLIPTokenizerFast:
    """The files of a published CLIP tokenizer, with three words in its vocabulary."""
    folder.mkdir(parents=True)
    alphabet = sorted(ByteLevel.alphabet())
    pieces = [*alphabet, *(a + "</w>" for a in alphabet), *(merge.replace(" ", "") for merge in MERGES), START, END]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token}
    config = {**special, "model_max_length": MAX_TOKENS, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizerFast.from_pretrained(folder)


def _tower_config(tokenizer: CLIPTokenizerFast, width: int, layers: int, act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=28,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act=act,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def write_tiny_xl(folder: Path) -> None:
    """Write a random model of about 1 MB: two levels, two towers of different widths, pictures of 32 x 32."""
    with tempfile.TemporaryDirectory() as written:
        first = _write_tokenizer(Path(written) / "tokenizer", pad_token=END)
        second = _write_tokenizer(Path(written) / "tokenizer_2", pad_token="!")  # as the published SDXL has it
        pipeline = StableDiffusionXLPipeline(
            vae=randomise(AutoencoderKL(**VAE), 1),
            text_encoder=randomise(CLIPTextModel(_tower_config(first, 24, 2, "quick_gelu")), 2),
            text_encoder_2=randomise(CLIPTextModelWithProjection(_tower_config(second, 40, 3, "gelu")), 3),
            tokenizer=first,
            tokenizer_2=second,
            unet=randomise(UNet2DConditionModel(**UNET), 4),
            scheduler=EulerDiscreteScheduler(**SCHEDULER),
            add_watermarker=False,
        )
        pipeline.save_pretrained(folder)
