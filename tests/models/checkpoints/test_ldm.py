"""UNets and autoencoders in LDM's names: the published key lists through diffusers' own converters, and through
ours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, UNet2DConditionModel, UNet2DModel, VQModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import nn

from models.blank import blank_network, namings
from models.checkpoints.ldm import LdmUNetNames
from models.checkpoints.single_file import UNET, VAE
from models.checkpoints.stored import shapes
from models.checkpoints.systems import systems
from models.unet import UNet
from tests.support.published_unets import PUBLISHED
from tests.support.single_files import LAYOUT, key_list, shapes_of

UNETS = {
    "unet-sd1": "stable-diffusion-1.5",
    "unet-sd2": "stable-diffusion-2.1",
    "unet-x4-upscaler": "stable-diffusion-x4-upscaler",
    "unet-sdxl": "sdxl",
    "unet-sdxl-refiner": "sdxl-refiner",
}
VAES = {"vae-kl": "sdxl", "vae-x4-upscaler": "stable-diffusion-x4-upscaler", "vae-sd3": "sd3-medium"}


def published(cls: type[nn.Module], config: dict[str, Any]) -> nn.Module:
    """A network of diffusers without memory."""
    with torch.device("meta"):
        return cls.from_config(config)


def assert_one_to_one(system: str, part: str, keys: dict[str, torch.Tensor]) -> None:
    """Every parameter has one key whose shape fits, and every key is used."""
    assert_names_fit(systems()[system].layout, part, systems()[system].parts[part], keys)


def assert_names_fit(layout: str, part: str, config: dict[str, Any], keys: dict[str, torch.Tensor]) -> None:
    network = blank_network(config)
    naming = namings(network).in_single_file
    assert naming is not None
    sources = {name: naming(LAYOUT[layout], part)(name) for name in shapes(network)}
    assert all(len(candidates) == 1 for candidates in sources.values())
    assert {candidates[0].name for candidates in sources.values()} == keys.keys()
    for name, shape in shapes(network).items():
        assert sources[name][0].fits(tuple(keys[sources[name][0].name].shape), shape), name


@pytest.mark.parametrize("keys", UNETS)
def test_published_unets_in_their_names_and_ours(keys: str) -> None:
    config = systems()[UNETS[keys]].parts["unet"]
    listed = key_list(keys, UNET)
    converted = convert_ldm_unet_checkpoint(dict(listed), config)
    assert shapes_of(converted) == shapes_of(published(UNet2DConditionModel, config).state_dict())
    assert shapes_of(converted) == shapes(blank_network(config))
    assert_one_to_one(UNETS[keys], "unet", listed)


@pytest.mark.parametrize("keys", VAES)
def test_published_autoencoders_in_their_names_and_ours(keys: str) -> None:
    config = systems()[VAES[keys]].parts["vae"]
    listed = key_list(keys, VAE)
    converted = convert_ldm_vae_checkpoint(dict(listed), config)
    assert shapes_of(converted) == shapes_of(published(AutoencoderKL, config).state_dict())
    assert shapes_of(converted) == shapes(blank_network(config))
    assert_one_to_one(VAES[keys], "vae", listed)


CLASS = PUBLISHED["latent-diffusion-class"].config
QUANTISED = {
    "_class_name": "VQModel",
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
    "latent_channels": 3,
    "num_vq_embeddings": 8192,
    "vq_embed_dim": 3,
    "scaling_factor": 1.0,
}
"""The autoencoder of four pixels along a side and 8192 entries."""


def test_latent_diffusions_own_networks_in_their_names_and_ours() -> None:
    """Of a class; for the entries diffusers' converter has no name, since they have the same in both."""
    listed, entries = key_list("vq-f4", VAE), "quantize.embedding.weight"
    theirs = convert_ldm_unet_checkpoint(dict(key_list("unet-ldm-class", UNET)), CLASS)
    quantised = convert_ldm_vae_checkpoint(dict(listed), QUANTISED) | {entries: listed[VAE + entries]}
    for part, cls, config, converted, keys in (
        ("unet", UNet2DConditionModel, CLASS, theirs, key_list("unet-ldm-class", UNET)),
        ("vqvae", VQModel, QUANTISED, quantised, listed),
    ):
        assert shapes_of(converted) == shapes_of(published(cls, config).state_dict())
        assert shapes_of(converted) == shapes(blank_network(config))
        assert_names_fit("latent-diffusion", part, config, keys)
    assert sum(tensor.numel() for tensor in listed.values()) == 55_322_782


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ("unet-ldm-sr", "latent-diffusion-super-resolution"),
        ("unet-ldm-semantic", "latent-diffusion-semantic"),
        ("unet-ldm-inpainting", "latent-diffusion-inpainting"),
    ],
)
def test_latent_diffusions_networks_without_a_context_in_their_names_and_ours(keys: str, name: str) -> None:
    """diffusers has no converter for these: the lists are those of the authors' code."""
    config, listed = PUBLISHED[name].config, key_list(keys, UNET)
    assert_names_fit("latent-diffusion", "unet", config, listed)
    assert sum(tensor.numel() for tensor in listed.values()) == PUBLISHED[name].parameters
    if name != "latent-diffusion-inpainting":  # of which the published class does not know the number of heads
        assert shapes_of(published(UNet2DModel, config).state_dict()) == shapes(blank_network(config))


def test_queries_keys_and_values_of_pixels_lie_together_by_head() -> None:
    """As the authors' code splits what one convolution gives: by head first, and each head into three."""
    heads, size, width, tokens = 2, 3, 6, 5
    config = PUBLISHED["latent-diffusion-semantic"].config
    config = {**config, "block_out_channels": [6] * 3, "norm_num_groups": 3, "attention_head_dim": size}
    network = blank_network(config)
    assert isinstance(network, UNet)
    names = LdmUNetNames(network.spec)
    stored = torch.randn(3 * width, width, 1, generator=torch.Generator().manual_seed(0))
    x = torch.randn(width, tokens, generator=torch.Generator().manual_seed(1))
    fused = (stored[..., 0] @ x).reshape(heads, 3, size, tokens)
    for third, part in enumerate("qkv"):
        source = names(f"mid_block.attentions.0.to_{part}.weight")[0]
        assert source.name == "middle_block.1.qkv.weight"
        ours = source.take(stored, (width, width)) @ x
        torch.testing.assert_close(ours.view(heads, size, tokens), fused[:, third])
    as_thirds = replace(source, heads=1).take(stored, (width, width)) @ x
    assert not torch.allclose(as_thirds.view(heads, size, tokens), fused[:, 2], atol=0.1)


def test_the_video_networks_in_their_names_and_ours() -> None:
    """diffusers has no converter for these: the lists are in the names of the authors' own code."""
    assert_one_to_one("svd-xt", "unet", key_list("unet-svd", UNET))
    listed = key_list("vae-svd")
    assert_one_to_one("svd-xt", "vae", listed)
    theirs = published(AutoencoderKLTemporalDecoder, systems()["svd-xt"].parts["vae"]).state_dict()
    assert shapes_of(theirs) == shapes(blank_network(systems()["svd-xt"].parts["vae"]))
    prefixes = {key.split(".decoder.")[0].split(".encoder.encoder.")[0] for key in listed if "quant" not in key}
    assert prefixes == {"first_stage_model", "conditioner.embedders.3"}


@pytest.mark.parametrize(
    ("name", "published_name", "heads"),
    [
        ("down_blocks.1.attentions.0.group_norm.bias", "input_blocks.4.1.norm.bias", 1),
        ("down_blocks.1.attentions.1.to_out.0.weight", "input_blocks.5.1.proj_out.weight", 1),
        ("down_blocks.3.attentions.1.to_k.bias", "input_blocks.11.1.qkv.bias", 8),
        ("up_blocks.2.attentions.2.to_v.weight", "output_blocks.8.1.qkv.weight", 8),
        ("down_blocks.0.downsamplers.0.conv1.weight", "input_blocks.3.0.in_layers.2.weight", 1),
        ("up_blocks.0.upsamplers.0.norm2.bias", "output_blocks.2.2.out_layers.0.bias", 1),
        ("up_blocks.2.upsamplers.0.time_emb_proj.weight", "output_blocks.8.2.emb_layers.1.weight", 1),
    ],
)
def test_names_of_latent_diffusions_inpainting(name: str, published_name: str, heads: int) -> None:
    """By hand."""
    network = blank_network(PUBLISHED["latent-diffusion-inpainting"].config)
    assert isinstance(network, UNet)
    assert [(source.name, source.heads) for source in LdmUNetNames(network.spec)(name)] == [(published_name, heads)]


@pytest.mark.parametrize(
    ("name", "published_name"),
    [
        ("conv_in.weight", "input_blocks.0.0.weight"),
        ("down_blocks.0.attentions.1.proj_in.bias", "input_blocks.2.1.proj_in.bias"),
        ("down_blocks.1.downsamplers.0.conv.bias", "input_blocks.6.0.op.bias"),
        ("mid_block.resnets.1.conv2.weight", "middle_block.2.out_layers.3.weight"),
        ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
        ("up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
        ("up_blocks.3.resnets.2.conv_shortcut.weight", "output_blocks.11.0.skip_connection.weight"),
        ("time_embedding.linear_2.bias", "time_embed.2.bias"),
    ],
)
def test_names_of_stable_diffusion(name: str, published_name: str) -> None:
    """By hand, from the file of Stable Diffusion 1.5."""
    network = blank_network(systems()["stable-diffusion-1.5"].parts["unet"])
    assert isinstance(network, UNet)
    assert [source.name for source in LdmUNetNames(network.spec)(name)] == [published_name]
