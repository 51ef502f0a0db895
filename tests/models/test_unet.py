"""The UNet against the published one, on redrawn weights, odd shapes and two odd configurations of every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.export import Dim

from models.blocks import fourier_features
from models.spec.unet import UNetSpec
from models.unet import UNet
from tests.support.published_unets import PUBLISHED, Published, in_fp64
from tests.support.tiny_xl import randomise

Relative = Callable[[Tensor, Tensor], float]
Inputs = dict[str, Tensor]
TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-10)]
BATCH, POOLED, FEATURES, CLASSES = 2, 10, 6, 11


def config(down: str, **options: Any) -> dict[str, Any]:
    """A config by its levels: ``x`` for one with cross-attention, ``-`` for one without."""
    names = ["CrossAttnDownBlock2D" if level == "x" else "DownBlock2D" for level in down]
    return {
        "down_block_types": tuple(names),
        "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(names)),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        **options,
    }


def with_vector(sizes: int, **options: Any) -> dict[str, Any]:
    """SDXL's options: pooled text and a number of sizes join the time embedding."""
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": FEATURES,
        "projection_class_embeddings_input_dim": POOLED + sizes * FEATURES,
        "use_linear_projection": True,
        **options,
    }


SD1 = {"attention_head_dim": 2, "cross_attention_dim": 12}
SD2 = {"use_linear_projection": True, "upcast_attention": True, "cross_attention_dim": 20}
LDM = {"in_channels": 3, "out_channels": 3, "attention_head_dim": 1, "cross_attention_dim": 9}
UPSCALER = {"in_channels": 7, "num_class_embeds": CLASSES, "cross_attention_dim": 10, "use_linear_projection": True}
CONFIGS = {
    "sd1": config("xx-", block_out_channels=(16, 24, 24), **SD1),
    "sd1-deep": config(
        "x-", block_out_channels=(24, 40), layers_per_block=2, transformer_layers_per_block=2, norm_eps=1e-2, **SD1
    ),
    "sd2": config("xxx-", block_out_channels=(16, 16, 24, 32), attention_head_dim=(1, 2, 3, 4), **SD2),
    "sd2-two-levels": config("x-", block_out_channels=(24, 16), attention_head_dim=(3, 4), **SD2),
    "ldm": config("-xx", block_out_channels=(16, 32, 40), **LDM),
    "ldm-two-levels": config("-x", block_out_channels=(24, 24), layers_per_block=3, **LDM),
    "sdxl": config(
        "-xx",
        block_out_channels=(32, 64, 96),
        layers_per_block=2,
        transformer_layers_per_block=(1, 2, 3),
        attention_head_dim=(2, 4, 6),
        cross_attention_dim=20,
        **with_vector(sizes=6),
    ),
    "sdxl-hole-in-the-middle": config(
        "x-x",
        block_out_channels=(16, 24, 16),
        layers_per_block=3,
        attention_head_dim=4,
        cross_attention_dim=32,
        norm_num_groups=4,
        **with_vector(sizes=6),
    ),
    "refiner": config(
        "-xx-",
        block_out_channels=(16, 24, 32, 32),
        transformer_layers_per_block=2,
        attention_head_dim=(2, 3, 4, 8),
        cross_attention_dim=14,
        **with_vector(sizes=5),
    ),
    "refiner-three-levels": config(
        "-x-",
        block_out_channels=(24, 16, 40),
        transformer_layers_per_block=(1, 1, 3),
        attention_head_dim=(2, 2, 5),
        cross_attention_dim=6,
        layers_per_block=2,
        **with_vector(sizes=5),
    ),
    "upscaler": config(
        "-xx",
        block_out_channels=(16, 32, 24),
        attention_head_dim=8,
        only_cross_attention=(True, True, False),
        **UPSCALER,
    ),
    "upscaler-two-levels": config(
        "xx",
        block_out_channels=(24, 16),
        attention_head_dim=2,
        only_cross_attention=True,
        layers_per_block=2,
        **UPSCALER,
    ),
    "sd1-inpainting": config("xx", block_out_channels=(16, 24), in_channels=9, **SD1),
    "sdxl-inpainting": config(
        "-x",
        in_channels=9,
        block_out_channels=(24, 40),
        attention_head_dim=(3, 5),
        cross_attention_dim=14,
        norm_eps=1e-2,
        **with_vector(sizes=6),
    ),
}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def published(request: pytest.FixtureRequest) -> UNet2DConditionModel:
    return randomise(UNet2DConditionModel(**request.param), 1)


@pytest.fixture(scope="module")
def ours(published: UNet2DConditionModel) -> UNet:
    return twin(published)


@pytest.fixture(scope="module")
def inputs(published: UNet2DConditionModel) -> Inputs:
    """Latents of 9 x 14, a fractional time, and a class token or seven tokens."""
    generator = torch.Generator().manual_seed(0)
    c = published.config
    tokens = 1 if c.in_channels == 3 else 7
    return {
        "x": torch.randn(BATCH, c.in_channels, 9, 14, generator=generator),
        "c_noise": torch.tensor([999.0, 417.25]),
        "context": torch.randn(BATCH, tokens, c.cross_attention_dim, generator=generator),
        "pooled": torch.randn(BATCH, POOLED, generator=generator),
        "sizes": torch.tensor([[1024.0, 768, 0, 0, 1024, 768], [64, 64, 0, 8, 64, 64]]),
        "index": torch.tensor([[7.0], [2.0]]),
    }


def twin(published: UNet2DConditionModel) -> UNet:
    unet = UNet(UNetSpec.from_config(published.config)).to(published.dtype)
    unet.load_state_dict(published.state_dict(), strict=True)
    return unet.eval().requires_grad_(False)


def vector_of(spec: UNetSpec, inputs: Inputs) -> Tensor:
    if spec.num_class_embeds:
        return inputs["index"]
    if not spec.vector_dim:
        return inputs["x"].new_empty(BATCH, 0)
    numbers = inputs["sizes"][:, : (spec.vector_dim - POOLED) // spec.time_id_dim]
    return torch.cat([inputs["pooled"], fourier_features(numbers, spec.time_id_dim).flatten(1)], dim=1)


def run(ours: UNet, inputs: Inputs) -> Tensor:
    with torch.inference_mode():
        return ours(inputs["x"], inputs["c_noise"], inputs["context"], vector_of(ours.spec, inputs))


def run_published(published: UNet2DConditionModel, inputs: Inputs) -> Tensor:
    c, options = published.config, {}
    if c.addition_embed_type:
        sizes = (c.projection_class_embeddings_input_dim - POOLED) // FEATURES
        options["added_cond_kwargs"] = {"text_embeds": inputs["pooled"], "time_ids": inputs["sizes"][:, :sizes]}
    if c.num_class_embeds:
        options["class_labels"] = inputs["index"][:, 0].long()
    with torch.inference_mode():
        return published(inputs["x"], inputs["c_noise"], inputs["context"], **options).sample


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_equals_the_published_network(
    published: UNet2DConditionModel, inputs: Inputs, relative: Relative, dtype: torch.dtype, tolerance: float
) -> None:
    if dtype == torch.float64:
        published, inputs = in_fp64(published), {name: tensor.double() for name, tensor in inputs.items()}
    expected, ours = run_published(published, inputs), twin(published)
    assert expected.std() > 0.2
    assert relative(run(ours, inputs), expected) < tolerance
    ours.mid_block.resnets[1].conv2.weight.mul_(1.01)  # a control: so little shows
    assert relative(run(ours, inputs), expected) > 5 * tolerance


@pytest.mark.parametrize("name", ["x", "c_noise", "context", "vector"])
def test_every_input_shows_in_the_output(ours: UNet, inputs: Inputs, relative: Relative, name: str) -> None:
    """A control: parity means nothing on a network that ignores its inputs."""
    given = {**inputs, "vector": vector_of(ours.spec, inputs)}
    if not given[name].numel():
        pytest.skip("this network takes no vector")
    changed = {**given, name: given[name].roll(1, dims=0)}
    names = ("x", "c_noise", "context", "vector")
    assert relative(ours(*(changed[k] for k in names)), ours(*(given[k] for k in names))) > 0.05


def test_the_spec_names_the_shape_of_the_network(ours: UNet, published: UNet2DConditionModel, inputs: Inputs) -> None:
    assert ours.spec.vector_dim == vector_of(ours.spec, inputs).shape[1]
    assert sum(p.numel() for p in ours.parameters()) == published.num_parameters()


@pytest.mark.parametrize("network", PUBLISHED.values(), ids=PUBLISHED)
def test_published_parameter_counts(network: Published) -> None:
    with torch.device("meta"):
        unet = UNet(UNetSpec.from_config(network.config))
    assert sum(p.numel() for p in unet.parameters()) == network.parameters


def test_inputs_of_other_shapes_are_refused() -> None:
    unet = UNet(UNetSpec.from_config({"in_channels": 4, "out_channels": 4, **CONFIGS["sd1"]}))
    x, c_noise, context = torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1, 3, 12)
    with pytest.raises(ValueError, match="x has 5 axes, expected 4"):
        unet(x[None], c_noise, context, torch.zeros(1, 0))
    with pytest.raises(ValueError, match="vector has 3 axes, expected 2"):
        unet(x, c_noise, context, torch.zeros(1, 1, 0))
    with pytest.raises(ValueError, match="vector has length 2, expected 0"):
        unet(x, c_noise, context, torch.zeros(1, 2))


def test_exports_with_dynamic_batch_and_tokens(relative: Relative) -> None:
    options = {"block_out_channels": (16,), "attention_head_dim": 2, "cross_attention_dim": 12}
    ours = twin(randomise(UNet2DConditionModel(**config("x", **options, **with_vector(sizes=1))), 1))
    batch = Dim("batch")
    dynamic = {"x": {0: batch}, "c_noise": {0: batch}, "context": {0: batch, 1: Dim("tokens")}, "vector": {0: batch}}

    def example(lanes: int, tokens: int) -> tuple[Tensor, ...]:
        shapes = [(lanes, 4, 3, 5), (lanes,), (lanes, tokens, 12), (lanes, POOLED + FEATURES)]
        generator = torch.Generator().manual_seed(lanes)
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)

    exported = torch.export.export(ours, example(3, 5), dynamic_shapes=dynamic, strict=False).module()
    # One token too, for which the network takes a shorter way when it is not exported.
    for given in (example(1, 1), example(2, 9)):
        assert relative(exported(*given), ours(*given)) < 1e-5
        assert relative(exported(*given), ours(given[0], given[1] + 1.0, *given[2:])) > 1e-4
