"""Published checkpoints to networks and back: diffusers folders, strict keys.

A network gets its dtype here and keeps it: it may be shared by many requests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.mmdit import MMDiT
from models.spec.mmdit import read_mmdit_spec
from models.spec.unet import read_unet_spec
from models.spec.vae import AutoencoderSpec, read_temporal_vae_spec, read_tiny_spec, read_vae_spec, read_vq_spec
from models.temporal_decoder import TemporalDecoderVAE
from models.tiny_autoencoder import TinyAutoencoder
from models.unet import UNet
from models.vae import VAE
from models.vq import VQ

N = TypeVar("N", bound=nn.Module)

WEIGHTS = "diffusion_pytorch_model.safetensors"
FP16_WEIGHTS = "diffusion_pytorch_model.fp16.safetensors"
INDEX_OF = {
    WEIGHTS: "diffusion_pytorch_model.safetensors.index.json",
    FP16_WEIGHTS: "diffusion_pytorch_model.safetensors.index.fp16.json",
}
"""By weight file: the index that takes its place when the weights are in shards."""


OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of an autoencoder's attention in checkpoints of 2022, which are still published, and their names since."""
_OLD_ATTENTION_KEY = re.compile(rf"(.+\.attentions\.\d+)\.({'|'.join(OLD_ATTENTION)})\.(weight|bias)")


def load_unet(folder: Path, dtype: torch.dtype = torch.float32) -> UNet:
    """The network of ``folder/unet`` in ``dtype``, in evaluation mode.

    Raises:
        ValueError: a file is missing, or keys or shapes do not match its config to the letter.
    """
    return _loaded(UNet(read_unet_spec(folder)), folder / "unet", dtype)


def load_mmdit(folder: Path, dtype: torch.dtype = torch.float32) -> MMDiT:
    """The network of ``folder/transformer``; as :func:`load_unet`."""
    return _loaded(MMDiT(read_mmdit_spec(folder)), folder / "transformer", dtype)


def load_vae(folder: Path, dtype: torch.dtype = torch.float32, part: str = "vae") -> VAE:
    """The autoencoder of ``folder/part`` in ``dtype``, in evaluation mode; errors as :func:`load_unet`.

    Raises:
        ValueError: fp16 is asked of weights that overflow in it.
    """
    spec = read_vae_spec(folder, part)
    return _loaded(VAE(spec), folder / part, _safe(dtype, spec))


def load_temporal_vae(folder: Path, dtype: torch.dtype = torch.float32, part: str = "vae") -> TemporalDecoderVAE:
    """The video autoencoder of ``folder/part``; as :func:`load_vae`."""
    spec = read_temporal_vae_spec(folder, part)
    return _loaded(TemporalDecoderVAE(spec), folder / part, _safe(dtype, spec))


def load_vq(folder: Path, dtype: torch.dtype = torch.float32, part: str = "vqvae") -> VQ:
    """The vector-quantised autoencoder of ``folder/part``; as :func:`load_vae`."""
    spec = read_vq_spec(folder, part)
    return _loaded(VQ(spec), folder / part, _safe(dtype, spec))


def load_tiny_decoder(folder: Path, dtype: torch.dtype = torch.float32) -> TinyAutoencoder:
    """The distilled autoencoder in ``folder`` itself, as these are published; as :func:`load_vae`."""
    spec = read_tiny_spec(folder)
    return _loaded(TinyAutoencoder(spec), folder, _safe(dtype, spec))


def weight_files(folder: Path) -> list[Path]:
    """The weight files of one network's folder: one file, or the shards its index names."""
    for name, index in INDEX_OF.items():
        if (folder / name).exists():
            return [folder / name]
        if (folder / index).exists():
            shards = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / shard for shard in sorted(set(shards))]
    raise ValueError(f"{folder} holds neither {WEIGHTS} nor {FP16_WEIGHTS}")


def save_network(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write ``config.json`` and one safetensors file the way diffusers names them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def load_weights(network: nn.Module, folder: Path) -> None:
    """Fill ``network`` from the weight files of ``folder``, keeping its dtype, and put it in evaluation mode.

    Raises:
        ValueError: a file is missing, or keys or shapes differ from the network's.
    """
    state: dict[str, Tensor] = {}
    for path in weight_files(folder):
        if not path.exists():
            raise ValueError(f"{path} is missing")
        state |= load_file(path)
    state = {_present_name(name): tensor for name, tensor in state.items()}
    own = network.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(f"{folder}: missing keys {missing[:5]}, unexpected keys {unexpected[:5]}")
    wrong = [f"{k} {tuple(state[k].shape)} != {tuple(own[k].shape)}" for k in own if state[k].shape != own[k].shape]
    if wrong:
        raise ValueError(f"{folder}: shapes differ from the config: {wrong[:5]}")
    network.load_state_dict(state)
    network.eval().requires_grad_(False)


def _loaded(network: N, folder: Path, dtype: torch.dtype) -> N:
    load_weights(network.to(dtype), folder)
    return network


def _safe(dtype: torch.dtype, spec: AutoencoderSpec) -> torch.dtype:
    if dtype == torch.float16 and spec.force_upcast:
        raise ValueError("dtype is float16, but these weights overflow in it (force_upcast); use float32 or bfloat16")
    return dtype


def _present_name(name: str) -> str:
    if match := _OLD_ATTENTION_KEY.fullmatch(name):
        block, old, kind = match.groups()
        return f"{block}.{OLD_ATTENTION[old]}.{kind}"
    return name
