"""Networks without memory."""

from __future__ import annotations

import pytest

from models.blank import blank_network
from models.checkpoints.systems import systems
from models.unet import UNet


def test_a_network_of_billions_takes_no_memory() -> None:
    network = blank_network(systems()["sdxl"].parts["unet"])
    assert isinstance(network, UNet)
    assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "class None is not served"),
        ({"_class_name": "FluxTransformer2DModel"}, "'FluxTransformer2DModel' is not served; known: UNet2D"),
        ({"architectures": ["BertModel"]}, "'BertModel' is not served"),
        ({"architectures": ["CLIPTextModel"], "hidden_act": -1}, "config of a CLIPTextModel makes no sense"),
    ],
)
def test_other_networks_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blank_network(config)
