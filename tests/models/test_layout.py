"""Channels-last weights: the same network in another order of memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kernels.temporal_conv import taps_first
from models.layout import channels_last
from models.video_blocks import VideoResnetBlock, per_frame

SIZES = (2, 3, 32, 5, 4)


@pytest.fixture
def block() -> VideoResnetBlock:
    torch.manual_seed(0)
    return VideoResnetBlock(32, 64, 1e-5, 16).double()


@torch.inference_mode()
def test_the_network_computes_the_same(block: VideoResnetBlock) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SIZES, generator=generator, dtype=torch.float64)
    time = torch.randn(2, 3, 16, generator=generator, dtype=torch.float64)
    before, state = block(x, time), {name: tensor.clone() for name, tensor in block.state_dict().items()}
    channels_last(block)
    torch.testing.assert_close(block(x, time), before, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(tensor, state[name]) for name, tensor in block.state_dict().items())


@torch.inference_mode()
def test_pictures_lie_channels_last_between_the_layers(block: VideoResnetBlock) -> None:
    seen: list[Tensor] = []
    network = nn.ModuleList([nn.Conv2d(8, 32, 3, padding=1), block]).float()  # fp64 convolutions know one layout
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _module, _given, result: seen.append(result))

    def run() -> None:
        block(per_frame(network[0], torch.zeros(2, 3, 8, 5, 4)), torch.zeros(2, 3, 16))

    run()
    assert not any(picture.is_contiguous(memory_format=torch.channels_last) for picture in seen)
    seen.clear()
    channels_last(network)
    run()
    assert len(seen) == 4 and all(picture.is_contiguous(memory_format=torch.channels_last) for picture in seen)


def test_weights_of_convolutions_over_frames_need_no_reordering(block: VideoResnetBlock) -> None:
    weight = block.temporal_res_block.conv1.weight
    assert taps_first(weight).data_ptr() != weight.data_ptr()
    channels_last(block)
    assert taps_first(weight).data_ptr() == weight.data_ptr()
