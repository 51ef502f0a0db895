"""The one record that every network is conditioned by, and the one call that every text conditioner has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

from models.conditioners.condition import Condition
from models.conditioners.sd3 import SD3Conditioner
from models.conditioners.sdxl import SDXLConditioner, SDXLRefinerConditioner
from models.conditioners.stable_diffusion import StableDiffusionConditioner
from models.spec.unet import read_unet_spec

LOADERS: dict[str, Callable] = {
    "sd1_folder": StableDiffusionConditioner.load,
    "sdxl_folder": lambda folder: SDXLConditioner.load(folder, read_unet_spec(folder)),
    "refiner_folder": lambda folder: SDXLRefinerConditioner.load(folder, read_unet_spec(folder)),
    "sd3_folder": SD3Conditioner.load,
}


@pytest.mark.parametrize("shape", [(5, 4, 6), (3, 4, 4, 6)], ids=["picture", "frames"])
def test_channels_are_added_as_fp32(shape: tuple[int, ...]) -> None:
    plain = Condition(torch.ones(2, 3), torch.ones(7))
    concat = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    joined = plain.with_concat(concat)
    assert plain.concat is None
    assert joined.concat is not None and joined.concat.dtype == torch.float32
    assert torch.equal(joined.concat, concat.float())
    assert joined.context is plain.context and joined.vector is plain.vector


@pytest.mark.parametrize("shape", [(4, 6), (1, 3, 4, 4, 6)])
def test_channels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"concat has shape \[.*\], expected \[C', h, w\]"):
        Condition(torch.ones(2, 3), torch.ones(7)).with_concat(torch.zeros(shape))


def test_a_condition_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Condition(torch.ones(2, 3), torch.ones(7)).concat = torch.zeros(1, 2, 2)


@pytest.mark.parametrize("name", LOADERS)
def test_every_text_conditioner_has_the_same_call(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    conditioner = LOADERS[name](folder)
    positive, negative = conditioner.encode_pair("a red cat " * 9, "a (dog:1.2)", 40, 24)
    assert positive.context.shape == negative.context.shape and positive.vector.shape == negative.vector.shape
    assert not torch.equal(positive.context, negative.context)
    alone = conditioner.encode("a red cat " * 9, 40, 24)
    assert torch.equal(alone.context, positive.context) and torch.equal(alone.vector, positive.vector)
    for tensor in (positive.context, positive.vector, negative.context, negative.vector):
        assert tensor.dtype == torch.float32 and not tensor.requires_grad
