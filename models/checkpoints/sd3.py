"""Names of the MMDiT in the files of SD3 and SD3.5 (Esser et al. 2024)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from models.checkpoints.source import Source
from models.spec.mmdit import MMDiTSpec

_ENDS = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_q": "x_block.attn.qkv",
    "attn.to_k": "x_block.attn.qkv",
    "attn.to_v": "x_block.attn.qkv",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.add_q_proj": "context_block.attn.qkv",
    "attn.add_k_proj": "context_block.attn.qkv",
    "attn.add_v_proj": "context_block.attn.qkv",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_q": "x_block.attn2.qkv",
    "attn2.to_k": "x_block.attn2.qkv",
    "attn2.to_v": "x_block.attn2.qkv",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_THIRDS = {"to_q": 0, "to_k": 1, "to_v": 2, "add_q_proj": 0, "add_k_proj": 1, "add_v_proj": 2}


class SD3Names:
    """The naming of one MMDiT.

    The published files write shift before scale everywhere. Ours, like diffusers, has scale first in the two norms
    whose output is not gated: the text's half of the last block, and the end.
    """

    def __init__(self, spec: MMDiTSpec) -> None:
        self.last = spec.depth - 1

    def __call__(self, name: str) -> Sequence[Source]:
        """A parameter's source; its name is without the prefix ``model.diffusion_model.``."""
        if match := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+?)(?:\.(weight|bias))", name):
            block, layer, kind = int(match[1]), match[2], match[3]
            published = f"joint_blocks.{block}.{_BLOCK.get(layer, layer)}.{kind}"
            swapped = block == self.last and layer == "norm1_context.linear"
            return (Source(published, third=_THIRDS.get(layer.rpartition(".")[2]), swapped=swapped),)
        for end, published in _ENDS.items():
            if name == end or name.startswith(f"{end}."):
                return (Source(published + name.removeprefix(end), swapped=end == "norm_out.linear"),)
        return (Source(name),)
