"""The published encoders on the meta device: the sizes that their configs give are those that were published."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
)

BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
VISION_H = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 1024,
}
T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}


@pytest.mark.parametrize(
    ("network", "config", "parameters"),
    [
        (CLIPTextModel, CLIPTextConfig(**CLIP_L), 123_060_480),
        (CLIPTextModelWithProjection, CLIPTextConfig(**BIG_G, projection_dim=1280), 694_659_840),
        (CLIPTextModel, CLIPTextConfig(**CLIP_H), 340_387_840),
        (CLIPVisionModelWithProjection, CLIPVisionConfig(**VISION_H), 632_076_800),
        (T5EncoderModel, T5Config(**T5_XXL, is_encoder_decoder=False, use_cache=False), 4_762_310_656),
    ],
    ids=["CLIP-L", "OpenCLIP-bigG", "OpenCLIP-H", "OpenCLIP-H vision", "T5-XXL"],
)
def test_parameters_are_as_published(network: type[nn.Module], config: object, parameters: int) -> None:
    with torch.device("meta"):
        made = network(config)
    assert sum(p.numel() for p in made.parameters()) == parameters
