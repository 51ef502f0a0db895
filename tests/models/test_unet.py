"""The UNet against the published one, on redrawn weights, odd shapes and odd configurations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from models.blocks import fourier_features
from models.spec.unet import UNetSpec
from models.unet import UNet
from tests.support.tiny_xl import randomise

Relative = Callable[[Tensor, Tensor], float]
COMMON = {"addition_embed_type": "text_time", "addition_time_embed_dim": 6, "use_linear_projection": True}
POOLED = 10
VECTOR = POOLED + 6 * 6
CONFIGS = {
    "three-levels": {
        "block_out_channels": (32, 64, 96),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": (2, 4, 6),
        "cross_attention_dim": 20,
    },
    "all-attention": {
        "in_channels": 5,
        "out_channels": 3,
        "block_out_channels": (24, 40),
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "layers_per_block": 1,
        "transformer_layers_per_block": (2, 1),
        "attention_head_dim": (3, 5),
        "cross_attention_dim": 14,
        "norm_num_groups": 8,
        "norm_eps": 1e-2,
    },
    "hole-in-the-middle": {
        "block_out_channels": (16, 24, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 3,
        "transformer_layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
        "norm_num_groups": 4,
    },
}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def published(request: pytest.FixtureRequest) -> UNet2DConditionModel:
    config = {**COMMON, "projection_class_embeddings_input_dim": VECTOR, **request.param}
    return randomise(UNet2DConditionModel(**config), 1)


@pytest.fixture(scope="module")
def ours(published: UNet2DConditionModel) -> UNet:
    unet = UNet(UNetSpec.from_config(published.config))
    unet.load_state_dict(published.state_dict(), strict=True)
    return unet.eval()


@pytest.fixture(scope="module")
def inputs(published: UNet2DConditionModel) -> dict[str, Tensor]:
    """Batch 3, latents of 8 x 12, a fractional time, seven tokens."""
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(3, published.config.in_channels, 8, 12, generator=generator),
        "c_noise": torch.tensor([999.0, 0.0, 417.25]),
        "context": torch.randn(3, 7, published.config.cross_attention_dim, generator=generator),
        "pooled": torch.randn(3, POOLED, generator=generator),
        "sizes": torch.tensor([[1024.0, 768, 0, 0, 1024, 768], [64, 64, 0, 8, 64, 64], [1, 2, 3, 4, 5, 6]]),
    }


def run(ours: UNet, inputs: dict[str, Tensor]) -> Tensor:
    features = fourier_features(inputs["sizes"], ours.spec.time_id_dim).flatten(1)
    vector = torch.cat([inputs["pooled"], features], dim=1)
    with torch.inference_mode():
        return ours(inputs["x"], inputs["c_noise"], inputs["context"], vector)


def run_published(published: UNet2DConditionModel, inputs: dict[str, Tensor]) -> Tensor:
    added = {"text_embeds": inputs["pooled"], "time_ids": inputs["sizes"]}
    with torch.inference_mode():
        return published(inputs["x"], inputs["c_noise"], inputs["context"], added_cond_kwargs=added).sample


def test_equals_the_published_network(
    ours: UNet, published: UNet2DConditionModel, inputs: dict[str, Tensor], relative: Relative
) -> None:
    expected = run_published(published, inputs)
    assert expected.std() > 0.2
    assert relative(run(ours, inputs), expected) < 1e-5


@pytest.mark.parametrize("name", ["x", "c_noise", "context", "pooled", "sizes"])
def test_every_input_shows_in_the_output(
    ours: UNet,
    published: UNet2DConditionModel,
    inputs: dict[str, Tensor],
    relative: Relative,
    name: str,
) -> None:
    """A control: parity means nothing on a network that ignores its inputs."""
    changed = {**inputs, name: inputs[name].roll(1, dims=0)}
    assert relative(run(ours, changed), run(ours, inputs)) > 0.1
    assert relative(run(ours, changed), run_published(published, changed)) < 1e-5


def test_spec_names_the_shape_of_the_network(ours: UNet, published: UNet2DConditionModel) -> None:
    assert ours.spec.vector_dim == VECTOR
    assert sum(p.numel() for p in ours.parameters()) == published.num_parameters()
