"""The UNet with temporal layers against the published one, and what is particular to clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn
from torch.export import Dim

from models.blocks import fourier_features
from models.spec.unet import UNetSpec
from models.unet import UNet
from tests.support.published_unets import PUBLISHED, in_fp64
from tests.support.tiny_xl import randomise

Relative = Callable[[Tensor, Tensor], float]
Inputs = dict[str, Tensor]
TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-10)]
BATCH, FEATURES = 2, 6


def config(down: str, numbers: int, **options: Any) -> dict[str, Any]:
    """A config by its levels, ``x`` for one with attention, and by how many numbers the vector embeds."""
    names = [f"{'CrossAttnDown' if level == 'x' else 'Down'}BlockSpatioTemporal" for level in down]
    return {
        "down_block_types": tuple(names),
        "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(names)),
        "addition_time_embed_dim": FEATURES,
        "projection_class_embeddings_input_dim": numbers * FEATURES,
        "layers_per_block": 1,
        **options,
    }


CONFIGS = {
    "image-to-video": config(
        "x-",
        3,
        in_channels=8,
        block_out_channels=(32, 64),
        num_attention_heads=(1, 4),
        cross_attention_dim=20,
        layers_per_block=2,
    ),
    "orbit": config(
        "-x",
        5,
        in_channels=8,
        block_out_channels=(64, 32),
        num_attention_heads=(4, 2),
        cross_attention_dim=11,
        transformer_layers_per_block=(1, 2),
    ),
    "text-to-video": config(
        "xx-",
        1,
        in_channels=4,
        block_out_channels=(32, 32, 64),
        num_attention_heads=(2, 1, 8),
        cross_attention_dim=24,
    ),
}
FRAMES = {"image-to-video": 5, "orbit": 3, "text-to-video": 7}
TOKENS = {"image-to-video": 1, "orbit": 1, "text-to-video": 6}


@pytest.fixture(scope="module", params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def published(name: str) -> UNetSpatioTemporalConditionModel:
    return randomise(UNetSpatioTemporalConditionModel(**CONFIGS[name]), 1)


@pytest.fixture(scope="module")
def ours(published: UNetSpatioTemporalConditionModel) -> UNet:
    return twin(published)


@pytest.fixture(scope="module")
def inputs(name: str) -> Inputs:
    """Clips of 7 x 6 latents."""
    generator = torch.Generator().manual_seed(0)
    c = CONFIGS[name]
    numbers = c["projection_class_embeddings_input_dim"] // FEATURES
    return {
        "x": torch.randn(BATCH, FRAMES[name], c["in_channels"], 7, 6, generator=generator),
        "c_noise": torch.tensor([1.6, -0.4]),
        "context": torch.randn(BATCH, TOKENS[name], c["cross_attention_dim"], generator=generator),
        "numbers": 20.0 * torch.rand(BATCH, numbers, generator=generator),
    }


def twin(published: UNetSpatioTemporalConditionModel) -> UNet:
    unet = UNet(UNetSpec.from_config(published.config)).to(published.dtype)
    unet.load_state_dict(published.state_dict(), strict=True)
    return unet.eval().requires_grad_(False)


def run(ours: UNet, inputs: Inputs) -> Tensor:
    vector = fourier_features(inputs["numbers"], FEATURES).flatten(-2)
    with torch.inference_mode():
        return ours(inputs["x"], inputs["c_noise"], inputs["context"], vector)


def run_published(published: UNetSpatioTemporalConditionModel, inputs: Inputs) -> Tensor:
    with torch.inference_mode():
        return published(inputs["x"], inputs["c_noise"], inputs["context"], added_time_ids=inputs["numbers"]).sample


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_equals_the_published_network(
    published: UNetSpatioTemporalConditionModel,
    inputs: Inputs,
    relative: Relative,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    if dtype == torch.float64:
        published, inputs = in_fp64(published), {key: tensor.double() for key, tensor in inputs.items()}
    expected, ours = run_published(published, inputs), twin(published)
    assert expected.std() > 0.2
    assert relative(run(ours, inputs), expected) < tolerance
    ours.mid_block.resnets[1].temporal_res_block.conv2.weight.mul_(1.01)  # a control: so little shows
    assert relative(run(ours, inputs), expected) > 5 * tolerance


def test_the_epsilons_are_the_published_ones(
    ours: UNet, published: UNetSpatioTemporalConditionModel, inputs: Inputs, relative: Relative
) -> None:
    """1e-5 and 1e-6 differ by less than a tolerance in fp32 can show."""
    theirs = {key: module.eps for key, module in published.named_modules() if isinstance(module, nn.GroupNorm)}
    assert {key: module.eps for key, module in ours.named_modules() if isinstance(module, nn.GroupNorm)} == theirs
    assert set(theirs.values()) == {1e-5, 1e-6}


@pytest.mark.parametrize("key", ["x", "c_noise", "context", "numbers"])
def test_every_input_shows_in_the_output(ours: UNet, inputs: Inputs, relative: Relative, key: str) -> None:
    changed = {**inputs, key: inputs[key].roll(1, dims=0)}
    assert relative(run(ours, changed), run(ours, inputs)) > 0.05


def test_a_clip_in_a_batch_is_the_clip_alone(ours: UNet, inputs: Inputs, relative: Relative) -> None:
    together = run(ours, inputs)
    alone = [run(ours, {key: tensor[i : i + 1] for key, tensor in inputs.items()}) for i in range(BATCH)]
    assert relative(torch.cat(alone), together) < 1e-5


def test_frames_see_each_other_and_know_their_order(ours: UNet, inputs: Inputs, relative: Relative) -> None:
    expected = run(ours, inputs)
    x = inputs["x"].clone()
    x[:, -1] = 0.0
    assert relative(run(ours, {**inputs, "x": x})[:, 0], expected[:, 0]) > 1e-3
    assert relative(run(ours, {**inputs, "x": inputs["x"].flip(1)}).flip(1), expected) > 0.01


def test_alpha_one_is_the_image_network_on_every_frame(
    published: UNetSpatioTemporalConditionModel, inputs: Inputs, relative: Relative
) -> None:
    """Blattmann et al. 2023, "Align your Latents", section 3.1. Exact but for the epsilons, which are carried over."""
    inputs = {key: tensor.double() for key, tensor in inputs.items()}
    video = twin(published).double()
    image = UNet(image_spec(video.spec)).double().eval().requires_grad_(False)
    kept = {key: value for key, value in video.state_dict().items() if not is_temporal(key)}
    image.load_state_dict({key.replace("spatial_res_block.", ""): value for key, value in kept.items()}, strict=True)
    modules = dict(image.named_modules())
    for key, module in video.named_modules():
        if isinstance(module, nn.GroupNorm) and not is_temporal(key):
            modules[key.replace("spatial_res_block.", "")].eps = module.eps
    frames = inputs["x"].shape[1]
    apart = {key: t.repeat_interleave(frames, dim=0) for key, t in inputs.items()} | {"x": inputs["x"].flatten(0, 1)}
    expected = run(image, apart).view(*inputs["x"].shape[:2], -1, *inputs["x"].shape[3:])
    assert relative(run(video, inputs), expected) > 0.1  # a control: with the weights as they are
    for key, parameter in video.named_parameters():
        if key.endswith("mix_factor"):
            parameter.fill_(100.0)
    assert relative(run(video, inputs), expected) < 1e-10


def image_spec(spec: UNetSpec) -> UNetSpec:
    fields = {key: value for key, value in vars(spec).items() if key != "temporal"}
    return UNetSpec(**fields)


def is_temporal(key: str) -> bool:
    return any(part in key for part in ("temporal", "time_mixer", "time_pos_embed"))


def test_published_parameter_count_of_the_temporal_layers() -> None:
    with torch.device("meta"):
        unet = UNet(UNetSpec.from_config(PUBLISHED["stable-video-diffusion"].config))
    assert sum(p.numel() for key, p in unet.named_parameters() if is_temporal(key)) == 656_076_838


def test_frames_with_one_vector_are_the_clip_with_that_vector(ours: UNet, inputs: Inputs, relative: Relative) -> None:
    expected, frames = run(ours, inputs), inputs["x"].shape[1]
    numbers = inputs["numbers"][:, None].repeat(1, frames, 1)
    assert relative(run(ours, {**inputs, "numbers": numbers}), expected) < 1e-5
    numbers[:, 1] += 3.0
    other = run(ours, {**inputs, "numbers": numbers})
    assert relative(other[:, 1], expected[:, 1]) > 0.01
    # The frame's own time embedding, not one for all: through the temporal layers the others change by less.
    assert relative(other[:, 1], expected[:, 1]) > relative(other[:, -1], expected[:, -1]) > 1e-4


def test_inputs_of_other_shapes_are_refused(ours: UNet, inputs: Inputs) -> None:
    with pytest.raises(ValueError, match="x has 4 axes, expected 5"):
        run(ours, {**inputs, "x": inputs["x"][:, 0]})
    with pytest.raises(ValueError, match="vector has 4 axes, expected 2, or 3 for a clip"):
        run(ours, {**inputs, "numbers": inputs["numbers"][:, None, None]})
    with pytest.raises(ValueError, match=f"expected {ours.spec.vector_dim}"):
        run(ours, {**inputs, "numbers": torch.cat([inputs["numbers"]] * 2, dim=-1)})


def test_exports_with_dynamic_batch(relative: Relative) -> None:
    options = {"block_out_channels": (64,), "num_attention_heads": 2, "cross_attention_dim": 12, "in_channels": 4}
    ours = twin(randomise(UNetSpatioTemporalConditionModel(**config("x", 1, **options)), 1))

    def example(lanes: int) -> tuple[Tensor, ...]:
        shapes = [(lanes, 4, 4, 3, 5), (lanes,), (lanes, 1, 12), (lanes, FEATURES)]
        generator = torch.Generator().manual_seed(lanes)
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)

    dynamic = dict.fromkeys(("x", "c_noise", "context", "vector"), {0: Dim("batch")})
    exported = torch.export.export(ours, example(3), dynamic_shapes=dynamic, strict=False).module()
    for lanes in (1, 2):
        given = example(lanes)
        assert relative(exported(*given), ours(*given)) < 1e-5
        assert relative(exported(*given), ours(given[0], given[1] + 1.0, *given[2:])) > 1e-4
