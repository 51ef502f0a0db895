"""Names of UNets and autoencoders in the files of latent diffusion and its successors (Rombach et al. 2022), which
count blocks by resolution and position."""

from __future__ import annotations

import re
from collections.abc import Sequence

from models.checkpoints.source import Source
from models.spec.unet import UNetSpec

_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding": "label_emb",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_PIXEL_ATTENTION = {"group_norm": "norm", "to_out.0": "proj_out"}
_THIRDS = {"to_q": 0, "to_k": 1, "to_v": 2}
_PIXEL_QKV = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.attentions\.\d+\.(to_[qkv])\.(weight|bias)")
_UNET_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_VAE_BLOCK = re.compile(r"(?:down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_VAE_PIXEL_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


class LdmUNetNames:
    """The naming of one UNet, with or without temporal layers."""

    def __init__(self, spec: UNetSpec) -> None:
        self.layers = spec.layers_per_block
        self.heads = spec.heads
        self.attentive_up = [bool(depth) for depth in reversed(spec.transformer_depth)]

    def __call__(self, name: str) -> Sequence[Source]:
        """A parameter's source; its name is without the prefix ``model.diffusion_model.``."""
        if match := _PIXEL_QKV.fullmatch(name):
            # Attention over pixels alone has one matrix, whose rows are grouped by head.
            way, block, which, kind = match.groups()
            level = {"down": int(block or 0), "up": -1 - int(block or 0), None: -1}[way]
            fused = self._ldm(name.replace(f"{which}.{kind}", f"qkv.{kind}"))
            return (Source(fused, third=_THIRDS[which], heads=self.heads[level]),)
        return (Source(self._ldm(name)),)

    def _ldm(self, name: str) -> str:
        if match := _UNET_BLOCK.fullmatch(name):
            way, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
            return self._block(way, block, kind, layer, rest)
        for end, published in _UNET_ENDS.items():
            if name.startswith(f"{end}."):
                rest = name.removeprefix(f"{end}.")
                return f"{published}.{_layer_rest(end, rest)}"
        return name

    def _block(self, way: str, block: int, kind: str, layer: int, rest: str) -> str:
        first = block * (self.layers + 1) + (1 if way == "down" else 0)
        blocks = "input_blocks" if way == "down" else "output_blocks"
        if kind == "downsamplers":
            inner = f"op.{rest.removeprefix('conv.')}" if rest.startswith("conv.") else _renamed(rest, _RESNET)
            return f"{blocks}.{first + self.layers}.0.{inner}"
        if kind == "upsamplers":
            return f"{blocks}.{first + self.layers}.{2 if self.attentive_up[block] else 1}.{_renamed(rest, _RESNET)}"
        position = 0 if kind == "resnets" else 1
        return f"{blocks}.{first + layer}.{position}.{_layer_rest(kind, rest)}"


def _layer_rest(kind: str, rest: str) -> str:
    """The name inside a residual block or transformer."""
    if "resnets" in kind:
        rest = rest.removeprefix("spatial_res_block.")
        prefix = "time_stack." if rest.startswith("temporal_res_block.") else ""
        return prefix + _renamed(rest.removeprefix("temporal_res_block."), _RESNET)
    if "attentions" in kind:
        rest = rest.replace("temporal_transformer_blocks.", "time_stack.", 1)
        rest = rest.replace("time_pos_embed.linear_1", "time_pos_embed.0").replace(
            "time_pos_embed.linear_2", "time_pos_embed.2"
        )
        return _renamed(rest, _PIXEL_ATTENTION)
    return rest


class LdmVaeNames:
    """The naming of one autoencoder: KL, vector-quantised, or with the temporal decoder of video."""

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def __call__(self, name: str) -> Sequence[Source]:
        """A parameter's source; its name is without the prefix ``first_stage_model.``."""
        half, _, rest = name.partition(".")
        if half not in ("encoder", "decoder"):
            return (Source(name),)
        return (Source(f"{half}.{self._half(half, rest)}"),)

    def _half(self, half: str, rest: str) -> str:
        if match := _VAE_BLOCK.fullmatch(rest):
            block, kind, layer, inner = int(match[1]), match[2], match[3], match[4]
            level = f"down.{block}" if half == "encoder" else f"up.{self.levels - 1 - block}"
            if kind == "resnets":
                return f"{level}.block.{layer}.{_vae_resnet(inner)}"
            if kind == "attentions":
                return f"{level}.attn.{layer}.{_renamed(inner, _VAE_PIXEL_ATTENTION)}"
            return f"{level}.{kind.removesuffix('rs')}.{inner}"
        if match := re.fullmatch(r"mid_block\.resnets\.(\d+)\.(.+)", rest):
            return f"mid.block_{int(match[1]) + 1}.{_vae_resnet(match[2])}"
        if match := re.fullmatch(r"mid_block\.attentions\.(\d+)\.(.+)", rest):
            return f"mid.attn_{int(match[1]) + 1}.{_renamed(match[2], _VAE_PIXEL_ATTENTION)}"
        rest = rest.replace("time_conv_out.", "conv_out.time_mix_conv.", 1)
        return rest.replace("conv_norm_out.", "norm_out.", 1)


def _vae_resnet(rest: str) -> str:
    if rest.startswith("temporal_res_block."):
        return "time_stack." + _renamed(rest.removeprefix("temporal_res_block."), _RESNET)
    rest = rest.removeprefix("spatial_res_block.").replace("time_mixer.mix_factor", "mix_factor")
    return rest.replace("conv_shortcut.", "nin_shortcut.", 1)


def _renamed(name: str, names: dict[str, str]) -> str:
    """``name`` with its beginning renamed, where there is a name for it."""
    for own, published in names.items():
        if name.startswith(f"{own}."):
            return published + name.removeprefix(own)
    return name
