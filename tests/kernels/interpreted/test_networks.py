"""Whole small networks with every kernel in them, interpreted, against the same networks in torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kernels.backend import OPS, chosen, selected
from models.layout import channels_last
from models.mmdit import MMDiT
from models.spec.mmdit import MMDiTSpec
from models.spec.unet import UNetSpec
from models.unet import UNet
from tests.support.tiny_xl import randomise

KERNELS = dict.fromkeys(OPS, "triton")
TORCH = dict.fromkeys(OPS, "torch")
SDXL = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": (1, 2),
    "cross_attention_dim": 24,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 16,
    "use_linear_projection": True,
}
SVD = {
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": (32,),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal",),
    "up_block_types": ("CrossAttnUpBlockSpatioTemporal",),
    "layers_per_block": 1,
    "num_attention_heads": (2,),
    "cross_attention_dim": 24,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 16,
}
SD35 = {
    "sample_size": 8,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "caption_projection_dim": 32,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 12,
    "pos_embed_max_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "qk_norm": "rms_norm",
}


def sdxl() -> tuple[nn.Module, tuple[int, ...], set[str]]:
    return UNet(UNetSpec.from_config(SDXL)), (2, 4, 4, 4), {"attention", "geglu", "group_norm"}


def svd() -> tuple[nn.Module, tuple[int, ...], set[str]]:
    ops = {"attention", "blend", "geglu", "group_norm", "temporal_attention", "temporal_resnet"}
    return UNet(UNetSpec.from_config(SVD)), (1, 3, 8, 3, 4), ops


def sd35() -> tuple[nn.Module, tuple[int, ...], set[str]]:
    return MMDiT(MMDiTSpec.from_config(SD35)), (2, 4, 6, 4), {"attention", "gated_residual", "modulate", "rms_norm"}


@pytest.mark.parametrize(
    "make", [pytest.param(sdxl, marks=pytest.mark.slow), svd, sd35], ids=lambda make: make.__name__
)
@torch.inference_mode()
def test_kernels_change_nothing(make: Callable[[], tuple[nn.Module, tuple[int, ...], set[str]]]) -> None:
    network, shape, ops = make()
    randomise(network, 0)
    channels_last(network)
    generator = torch.Generator().manual_seed(1)
    vector = 12 if isinstance(network, MMDiT) else 16
    inputs = [torch.randn(s, generator=generator) for s in (shape, (shape[0], 7, 24), (shape[0], vector))]
    time = torch.full((shape[0],), 500.0)

    def run(backends: dict[str, str], x: Tensor) -> Tensor:
        with selected(backends):
            return network(x, time, *inputs[1:])

    x = inputs[0].to(memory_format=torch.channels_last) if len(shape) == 4 else inputs[0]
    expected, other = run(TORCH, x), run(TORCH, x.flip(-1))
    result = run(KERNELS, x)
    assert {op for op, backend in chosen() if backend == "triton"} >= ops
    scale = expected.abs().max()
    assert float((result - expected).abs().max() / scale) < 1e-5
    assert float((other - expected).abs().max() / scale) > 1e-2
