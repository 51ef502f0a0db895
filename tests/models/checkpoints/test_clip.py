"""Encoders in the names of single files: the published key lists through diffusers' own converters, and through
ours."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_open_clip_checkpoint,
    convert_sd3_t5_checkpoint_to_diffusers,
)
from torch import Tensor, nn

from models.blank import blank_network, namings
from models.checkpoints.stored import shapes
from models.checkpoints.systems import systems
from tests.support.single_files import LAYOUT, key_list, shapes_of

ENCODERS = {
    "clip-l": ("sdxl", "text_encoder"),
    "open-clip-bigg": ("sdxl", "text_encoder_2"),
    "open-clip-h": ("stable-diffusion-2.1", "text_encoder"),
    "open-clip-h-vision": ("svd-xt", "image_encoder"),
    "clip-bigg": ("sd3-medium", "text_encoder_2"),
    "t5-xxl": ("sd3-medium", "text_encoder_3"),
}


def prefix_of(keys: str) -> str:
    system, part = ENCODERS[keys]
    return LAYOUT[systems()[system].layout].scopes[part][0]


def network_of(keys: str) -> nn.Module:
    system, part = ENCODERS[keys]
    return blank_network(systems()[system].parts[part])


def without_wrapper(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return shapes_of({key.removeprefix("text_model."): tensor for key, tensor in state.items()})


@pytest.mark.parametrize("keys", ENCODERS)
def test_published_encoders_in_their_names_and_ours(keys: str) -> None:
    system, part = ENCODERS[keys]
    network, listed = network_of(keys), key_list(keys, prefix_of(keys))
    naming = namings(network).in_single_file
    assert naming is not None
    names = naming(LAYOUT[systems()[system].layout], part)
    sources = {name: [s for s in names(name) if s.name in listed] for name in shapes(network)}
    assert all(len(found) == 1 for found in sources.values())
    assert {found[0].name for found in sources.values()} == listed.keys()
    for name, shape in shapes(network).items():
        assert sources[name][0].fits(tuple(listed[sources[name][0].name].shape), shape), name


def test_clip_l_through_diffusers() -> None:
    converted: dict[str, Tensor] = convert_ldm_clip_checkpoint(key_list("clip-l", prefix_of("clip-l")))
    assert without_wrapper(converted) == shapes(network_of("clip-l"))


@pytest.mark.parametrize("keys", ["open-clip-bigg", "open-clip-h"])
def test_open_clip_through_diffusers(keys: str) -> None:
    network = network_of(keys)
    converted = convert_open_clip_checkpoint(network, key_list(keys, prefix_of(keys)), prefix=prefix_of(keys))
    own = {name.removeprefix("text_model."): shape for name, shape in shapes(network).items()}
    assert without_wrapper(converted) == own


def test_t5_through_diffusers() -> None:
    converted = convert_sd3_t5_checkpoint_to_diffusers(key_list("t5-xxl", prefix_of("t5-xxl")))
    own = shapes(network_of("t5-xxl"))
    assert own.pop("encoder.embed_tokens.weight") == own["shared.weight"]
    assert shapes_of(converted) == own
