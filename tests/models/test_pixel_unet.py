"""The UNet with attention over pixels alone against the published one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.spec.unet import UNetSpec
from models.unet import UNet
from models.weights import OLD_ATTENTION, WEIGHTS, load_unet
from tests.support.published_unets import in_fp64
from tests.support.tiny_xl import randomise

Relative = Callable[[Tensor, Tensor], float]
TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-13)]
BATCH, CLASSES = 2, 11


def config(down: str, **options: Any) -> dict[str, Any]:
    """A config by its levels: ``x`` for one with attention, ``-`` for one without."""
    resampling = options.get("downsample_type") == "resnet"
    plain = "ResnetDownsampleBlock2D" if resampling else "DownBlock2D"
    names = ["AttnDownBlock2D" if level == "x" else plain for level in down]
    return {
        "_class_name": "UNet2DModel",
        "down_block_types": tuple(names),
        "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(names)),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        **options,
    }


RESAMPLING = {"downsample_type": "resnet", "upsample_type": "resnet"}
CONFIGS = {
    "super-resolution": config("--x", block_out_channels=(16, 24, 32), layers_per_block=2, in_channels=6),
    "super-resolution-two-levels": config("-x", block_out_channels=(24, 16), in_channels=6, norm_eps=1e-2),
    "semantic": config("---", block_out_channels=(16, 32, 24), in_channels=6, attention_head_dim=12),
    "one-head": config("xx", block_out_channels=(16, 24), attention_head_dim=None, layers_per_block=3),
    "inpainting": config("-xx", block_out_channels=(16, 24, 32), in_channels=7, layers_per_block=2, **RESAMPLING),
    "inpainting-hole-in-the-middle": config(
        "x-x", block_out_channels=(24, 16, 16), in_channels=7, attention_head_dim=4, **RESAMPLING
    ),
    "pixels-of-their-own": config("-x", block_out_channels=(16, 24), flip_sin_to_cos=False, freq_shift=1),
    "class": config("x-", block_out_channels=(16, 24), num_class_embeds=CLASSES),
}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def published(request: pytest.FixtureRequest) -> UNet2DModel:
    return randomise(UNet2DModel.from_config(request.param), 1)


def twin(published: UNet2DModel) -> UNet:
    unet = UNet(UNetSpec.from_config({"_class_name": "UNet2DModel", **published.config})).to(published.dtype)
    unet.load_state_dict(published.state_dict(), strict=True)
    return unet.eval().requires_grad_(False)


def inputs_of(spec: UNetSpec, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Latents of 12 x 20: with three levels the lowest has 3 x 5. The published class halves even sides alone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, spec.in_channels, 12, 20, generator=generator)
    vector = torch.tensor([[7.0], [2.0]]) if spec.num_class_embeds else torch.zeros(BATCH, 0)
    given = (x, torch.tensor([999.0, 417.25]), torch.zeros(BATCH, 1, 0), vector)
    return tuple(tensor.to(dtype) for tensor in given)


def run_published(published: UNet2DModel, inputs: tuple[Tensor, ...]) -> Tensor:
    x, time, _, vector = inputs
    with torch.inference_mode():
        return published(x, time, class_labels=vector[:, 0].long() if vector.numel() else None).sample


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_equals_the_published_network(
    published: UNet2DModel, relative: Relative, dtype: torch.dtype, tolerance: float
) -> None:
    published = in_fp64(published) if dtype == torch.float64 else published
    ours = twin(published)
    inputs = inputs_of(ours.spec, dtype)
    expected = run_published(published, inputs)
    assert expected.std() > 0.2
    assert relative(ours(*inputs), expected) < tolerance
    assert sum(p.numel() for p in ours.parameters()) == published.num_parameters()
    ours.mid_block.attentions[0].to_out[0].weight.mul_(1.01)  # a control: so little shows
    assert relative(ours(*inputs), expected) > 5 * tolerance


@pytest.mark.parametrize("place", [0, 1, 3], ids=["x", "c_noise", "vector"])
def test_every_input_shows_in_the_output(published: UNet2DModel, relative: Relative, place: int) -> None:
    """A control: parity means nothing on a network that ignores its inputs."""
    ours = twin(published)
    inputs = inputs_of(ours.spec)
    if not inputs[place].numel():
        pytest.skip("this network takes no vector")
    changed = [*inputs[:place], inputs[place].roll(1, dims=0), *inputs[place + 1 :]]
    assert relative(ours(*changed), ours(*inputs)) > 0.05


def test_a_row_does_not_depend_on_its_neighbours(published: UNet2DModel, relative: Relative) -> None:
    ours = twin(published)
    inputs = inputs_of(ours.spec)
    for row in range(BATCH):
        alone = ours(*(tensor[row : row + 1] for tensor in inputs))
        assert relative(alone, ours(*inputs)[row : row + 1]) < 1e-5


def test_a_context_is_not_read() -> None:
    ours = twin(randomise(UNet2DModel.from_config(CONFIGS["semantic"]), 1))
    x, time, context, vector = inputs_of(ours.spec)
    assert torch.equal(ours(x, time, torch.zeros(BATCH, 77, 0), vector), ours(x, time, context, vector))


def test_sides_may_be_odd_where_convolutions_halve_them() -> None:
    """As in the UNets with a context, and beyond the published class."""
    ours = twin(randomise(UNet2DModel.from_config(CONFIGS["super-resolution"]), 1))
    x, *rest = inputs_of(ours.spec)
    assert ours(x[..., :9, :13], *rest).shape == (BATCH, 3, 9, 13)
    resampling = twin(randomise(UNet2DModel.from_config(CONFIGS["inpainting"]), 1))
    x, *rest = inputs_of(resampling.spec)
    with pytest.raises(ValueError, match="x has sides 12 and 18, expected multiples of 4"):
        resampling(x[..., :18], *rest)


@pytest.mark.parametrize("names", ["present", "of 2022"])
def test_folders_load_strictly(published: UNet2DModel, names: str, tmp_path: Path) -> None:
    published.save_pretrained(tmp_path / "unet")
    expected = published.state_dict()
    path = tmp_path / "unet" / WEIGHTS
    if names == "of 2022":
        state = load_file(path)
        for old, present in OLD_ATTENTION.items():
            state = {key.replace(f".{present}.", f".{old}."): tensor for key, tensor in state.items()}
        assert state.keys() != expected.keys()
        save_file(state, path)
    loaded = load_unet(tmp_path).state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[key], expected[key]) for key in expected)
    state = load_file(path)
    del state["mid_block.attentions.0.group_norm.weight"]
    save_file(state, path)
    with pytest.raises(ValueError, match="missing keys .*mid_block.attentions.0.group_norm.weight"):
        load_unet(tmp_path)
