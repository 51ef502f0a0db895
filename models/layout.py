"""Where a network's weights lie in memory, for a GPU."""

from __future__ import annotations

import torch
from torch import nn


def channels_last(network: nn.Module) -> None:
    """Reorder the weights of a network in place, so that every picture in it is [B, H, W, C] in memory.

    A convolution's output lies as its weight does, and everything between convolutions keeps what it gets; so from
    the first convolution on no tensor is reordered again. Values, names and shapes stay. Convolutions over frames get
    the order that ``kernels.temporal_conv`` reads: taps, then input channels, then output channels.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d) and module.kernel_size == (3, 1, 1):
            taps = module.weight.data.flatten(2).permute(2, 1, 0).contiguous()
            module.weight.data = taps.permute(2, 1, 0)[..., None, None]
