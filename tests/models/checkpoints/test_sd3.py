"""The MMDiT in SD3's names: the published key lists through diffusers' own converter, and through ours."""

from __future__ import annotations

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

from models.blank import blank_network, namings
from models.checkpoints.single_file import UNET
from models.checkpoints.source import Source
from models.checkpoints.stored import shapes
from models.checkpoints.systems import systems
from tests.support.single_files import LAYOUT, key_list, shapes_of

SYSTEMS = ("sd3-medium", "sd3.5-medium", "sd3.5-large")


@pytest.mark.parametrize("system", SYSTEMS)
def test_published_transformers_in_their_names_and_ours(system: str) -> None:
    config = systems()[system].parts["transformer"]
    listed = key_list(f"mmdit-{system}", UNET)
    converted = convert_sd3_transformer_checkpoint_to_diffusers(dict(listed))
    with torch.device("meta"):
        theirs = SD3Transformer2DModel.from_config(config)
    network = blank_network(config)
    assert shapes_of(converted) == shapes_of(theirs.state_dict()) == shapes(network)
    naming = namings(network).in_single_file
    assert naming is not None
    sources = {name: naming(LAYOUT["sd3"], "transformer")(name)[0] for name in shapes(network)}
    assert {source.name for source in sources.values()} == listed.keys()
    assert all(sources[n].fits(tuple(listed[sources[n].name].shape), shape) for n, shape in shapes(network).items())


def test_what_stands_in_another_order_than_ours() -> None:
    network = blank_network(systems()["sd3-medium"].parts["transformer"])
    naming = namings(network).in_single_file
    assert naming is not None
    names = [name for name in shapes(network) if naming(LAYOUT["sd3"], "transformer")(name)[0].swapped]
    assert sorted(names) == [
        *(f"norm_out.linear.{kind}" for kind in ("bias", "weight")),
        *(f"transformer_blocks.23.norm1_context.linear.{kind}" for kind in ("bias", "weight")),
    ]
    query, key = (naming(LAYOUT["sd3"], "transformer")(f"transformer_blocks.0.attn.to_{n}.weight")[0] for n in "qk")
    assert query == Source(f"{UNET}joint_blocks.0.x_block.attn.qkv.weight", third=0)
    assert (key.name, key.third) == (query.name, 1)
