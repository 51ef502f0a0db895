"""Names of text and vision encoders: in folders of their own, and in single files, where OpenCLIP's towers keep the
names of that library (Ilharco et al. 2021)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from models.checkpoints.source import Source

_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_PROJECTIONS = {"text_projection.weight": "text_projection", "visual_projection.weight": "proj"}
_THIRDS = {"q": 0, "k": 1, "v": 2}


def clip_names(name: str) -> Sequence[Source]:
    """A tower as its library writes it. The prefix ``text_model`` is in all published files, but in networks only
    beside a projection."""
    if name.startswith(("text_model.", "vision_model.", *_PROJECTIONS)):
        return (Source(name),)
    return (Source(f"text_model.{name}"), Source(name))


def t5_names(name: str) -> Sequence[Source]:
    """T5's encoder. Its embedding is one table under two names, of which files hold one or both."""
    if name == "encoder.embed_tokens.weight":
        return (Source("shared.weight"), Source(name))
    return (Source(name),)


def open_clip_names(name: str) -> Sequence[Source]:
    """A tower as OpenCLIP writes it: one matrix for queries, keys and values, projections transposed."""
    if name in _PROJECTIONS:
        return (Source(_PROJECTIONS[name], transposed=True),)
    name = name.removeprefix("text_model.").removeprefix("vision_model.")
    if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
        block, layer, kind = f"transformer.resblocks.{match[1]}", match[2], match[3]
        if fused := re.fullmatch(r"self_attn\.([qkv])_proj", layer):
            return (Source(f"{block}.attn.in_proj_{kind}", third=_THIRDS[fused[1]]),)
        return (Source(f"{block}.{_LAYER.get(layer, layer)}.{kind}"),)
    return (Source(_ENDS.get(name, name)),)
